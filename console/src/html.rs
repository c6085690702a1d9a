//! What all pages have in common. `maud` escapes every text.

use maud::{DOCTYPE, Markup, html};

/// Where one page lives and whom it listens to.
pub(crate) struct Shell<'a> {
    /// The browser's title.
    pub(crate) title: &'a str,
    /// Where the script, the style sheet and the icon are.
    pub(crate) assets: &'a str,
    /// Which stream says that something changed.
    pub(crate) events: Option<&'a str>,
    /// Where the part that changes is fetched.
    pub(crate) fragment: &'a str,
    /// Which entry of the menu this is.
    pub(crate) at: &'a str,
}

const MENU: &[(&str, &str)] = &[("/", "Pushes"), ("/phone", "Phones"), ("/docs", "API")];

impl Shell<'_> {
    /// The whole page around `main`. The part that changes must have the id `live`, the spoken summary the id `summary`.
    pub(crate) fn page(&self, main: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) }
                    link rel="icon" type="image/svg+xml" href={ (self.assets) "/icon.svg" };
                    link rel="stylesheet" href={ (self.assets) "/app.css" };
                    script src={ (self.assets) "/app.js" } defer {}
                }
                body data-events=[self.events] data-fragment=(self.fragment) {
                    a.skip href="#main" { "Skip to content" }
                    header.bar {
                        span.brand { "Countersign" }
                        nav aria-label="Pages" {
                            @for (href, name) in MENU {
                                a href=(href) aria-current=[(*href == self.at).then_some("page")] { (name) }
                            }
                        }
                        p.link id="connection" role="status" { span.dot aria-hidden="true" {} span.words { "Not live: reload to look again" } }
                    }
                    main id="main" tabindex="-1" { (main) }
                }
            }
        }
    }
}

/// A state: a sign, the word, a colour.
pub(crate) fn badge(state: &str) -> Markup {
    let (sign, tone) = match state {
        "approved" | "completed" | "answered" => ("✓", "good"),
        "denied" | "failed" => ("✕", "bad"),
        "expired" => ("⌛", "warn"),
        "cancelled" | "withdrawn" | "skipped" => ("⊘", "plain"),
        "retry_wait" => ("↻", "warn"),
        // Still under way.
        _ => ("●", "open"),
    };
    html! { span.badge.(tone) { span aria-hidden="true" { (sign) } (crate::words::plain(state)) } }
}
