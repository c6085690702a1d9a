//! Who may ask, and what a browser may do with the answer.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Everything from here, nothing inline, nobody around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const HEADERS: &[(&str, &str)] = &[
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    // Not `no-referrer`: browsers then hide the origin of a form too.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Lets only requests through that come from our own pages, and seals the answers.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let host = host_of(&request).map(str::to_owned);
    let refused = if !host.as_deref().is_none_or(is_here) {
        Some("this page is served under localhost or an address only")
    } else if changes(request.method()) && !ours(request.headers(), host.as_deref()) {
        Some("another site sent this form")
    } else {
        None
    };
    let mut response = match refused {
        Some(why) => (StatusCode::FORBIDDEN, why).into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn changes(method: &Method) -> bool {
    !(method == Method::GET || method == Method::HEAD)
}

fn host_of(request: &Request) -> Option<&str> {
    let named = request.headers().get(header::HOST);
    // HTTP/2 has it in the target.
    named.map_or_else(
        || request.uri().authority().map(Authority::as_str),
        |value| Some(value.to_str().unwrap_or("?")),
    )
}

/// A page elsewhere can let its own name point to this machine, but neither an address nor `localhost`.
fn is_here(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<std::net::IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || bare.to_ascii_lowercase().ends_with(".localhost")
}

/// Browsers say where a form comes from (Fetch Metadata; older ones by `Origin`); a program that says neither acts for its own user.
fn ours(headers: &HeaderMap, host: Option<&str>) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // Another port of this machine is the same site, and still not us.
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let of = origin.split_once("://").map(|(_, authority)| authority);
            of.is_some() && of == host
        }
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{is_here, ours};
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    #[test]
    fn only_addresses_and_localhost_are_here() {
        for host in [
            "localhost",
            "LOCALHOST:7070",
            "phones.localhost:1",
            "127.0.0.1:7070",
            "[::1]:7070",
            "192.168.1.4:80",
        ] {
            assert!(is_here(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "?",
            "",
        ] {
            assert!(!is_here(host), "{host}");
        }
    }

    #[test]
    fn only_our_own_forms_count() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect()
        };
        let host = Some("localhost:7070");
        let site = |word| {
            headers(&[
                ("sec-fetch-site", word),
                ("origin", "http://localhost:7070"),
            ])
        };
        assert!(ours(&site("same-origin"), host));
        assert!(!ours(&site("same-site"), host));
        assert!(!ours(&site("cross-site"), host));
        assert!(ours(&headers(&[("origin", "http://localhost:7070")]), host));
        assert!(!ours(
            &headers(&[("origin", "http://localhost:8080")]),
            host
        ));
        assert!(!ours(&headers(&[("origin", "null")]), host));
        assert!(ours(&headers(&[]), host));
    }
}
