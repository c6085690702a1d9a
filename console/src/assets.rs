//! The script, the style sheet and the icon: in the binary, so that a page needs nothing but this process.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use rust_embed::{Embed, EmbeddedFile};

#[derive(Embed)]
#[folder = "assets/"]
struct Assets;

/// A file and what it is.
#[derive(Clone, Copy)]
pub(crate) struct Asset {
    name: &'static str,
    kind: &'static str,
}

pub(crate) const SCRIPT: Asset = Asset {
    name: "app.js",
    kind: "text/javascript; charset=utf-8",
};
pub(crate) const STYLE: Asset = Asset {
    name: "app.css",
    kind: "text/css; charset=utf-8",
};
pub(crate) const ICON: Asset = Asset {
    name: "icon.svg",
    kind: "image/svg+xml",
};

impl IntoResponse for Asset {
    fn into_response(self) -> Response {
        // The folder is compiled in; a test asks for every file.
        let file: Option<EmbeddedFile> = Assets::get(self.name);
        let bytes = file.map(|file| file.data).unwrap_or_default();
        let headers = [
            (header::CONTENT_TYPE, self.kind),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, bytes).into_response()
    }
}
