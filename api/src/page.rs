//! The few pages that a person sees in a browser of ours: self-contained, without a script, and nothing on the way may keep them.

use crate::problem::Problem;
use axum::response::{Html, IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use shared::crypto::sha256_text;
use std::sync::OnceLock;

const STYLE: &str = "body{font:17px/1.5 system-ui,sans-serif;max-width:26rem;margin:15vh auto 0;padding:0 1.5rem;color-scheme:light dark}\
    h1{font-size:1.4rem}button{font:inherit;font-weight:600;padding:.7rem 1.6rem;border-radius:.6rem;border:0;background:#2f4dc4;color:#fff}";

/// For text and for attributes in quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The style by its hash, and forms to where `forms` says; nothing else.
fn policy(forms: &str) -> String {
    static HASH: OnceLock<String> = OnceLock::new();
    // The policy wants the alphabet with + and /, padded.
    let hash = HASH.get_or_init(|| {
        let url_safe = sha256_text(STYLE.as_bytes());
        format!("{}=", url_safe.replace('-', "+").replace('_', "/"))
    });
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action {forms}; frame-ancestors 'none'; base-uri 'none'"
    )
}

fn page(status: StatusCode, forms: &str, title: &str, body: &str) -> Response {
    let title = escaped(title);
    let text = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <meta name=robots content=noindex><title>{title}</title><style>{STYLE}</style></head>\
         <body><main><h1>{title}</h1>{body}</main></body></html>"
    );
    let mut response = (status, Html(text)).into_response();
    let headers = response.headers_mut();
    // A hash, words and fixed texts: there is no character that a header could refuse.
    if let Ok(policy) = HeaderValue::from_str(&policy(forms)) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    seal(headers);
    response
}

/// What every answer under a secret link says, pages and redirects alike.
pub(crate) fn seal(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// One button that posts to the same address. `host`: to where it leads in the end.
pub(crate) fn confirm(rp: &str, host: &str) -> Response {
    let (rp, host) = (escaped(rp), escaped(host));
    let body = format!(
        "<p><b>{rp}</b> asks you to go on at <b>{host}</b>. This works once.</p><form method=post><button>Continue</button></form>"
    );
    // Browsers hold a form's redirects to this too, and the page it leads to may redirect further.
    page(StatusCode::OK, "'self' https: http:", "Continue?", &body)
}

/// A refusal, for people where `headers` say that a browser asks.
pub(crate) fn refusal(headers: &HeaderMap, problem: Problem) -> Response {
    let html = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|accept| accept.contains("text/html"));
    if html {
        let (status, title, detail) = problem.words();
        let body = format!("<p>{}</p>", escaped(detail.unwrap_or_default()));
        return page(status, "'none'", title, &body);
    }
    let mut response = problem.into_response();
    seal(response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::{confirm, escaped, policy};

    #[test]
    fn what_is_not_ours_is_escaped() {
        assert_eq!(
            escaped("<a href=\"x\">&'"),
            "&lt;a href=&quot;x&quot;&gt;&amp;&#39;"
        );
        let headers = confirm("x", "y").headers().clone();
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert!(policy("'none'").contains("default-src 'none'"));
    }
}
