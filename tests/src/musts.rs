//! What the standards demand of a product like this, by number, and which tests show it. A test that shows demand 7 is named `must_07_…`; of 7 and 40, `must_07_40_…`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One demand.
pub struct Must {
    /// Its number; the numbers never change.
    pub number: u8,
    /// Where it comes from.
    pub source: &'static str,
    /// What it demands.
    pub text: &'static str,
    /// Why no test is asked for, where none is.
    pub exempt: Option<&'static str>,
}

const NIST: &str = "NIST SP 800-63B-4, 3.1.3";
const RTS: &str = "(EU) 2018/389";
const OWASP: &str = "OWASP, CISA";
const CIBA: &str = "CIBA Core 1.0";
const NO_CIBA: &str = "there is no CIBA endpoint in this release";

const fn must(number: u8, source: &'static str, text: &'static str) -> Must {
    Must {
        number,
        source,
        text,
        exempt: None,
    }
}

const fn ciba(number: u8, text: &'static str) -> Must {
    Must {
        number,
        source: CIBA,
        text,
        exempt: Some(NO_CIBA),
    }
}

/// All forty.
pub static MUSTS: [Must; 40] = [
    must(
        1,
        NIST,
        "No answer counts later than 600 s after the push was made, whatever was asked for.",
    ),
    must(2, NIST, "A challenge is accepted once."),
    must(
        3,
        NIST,
        "Profile `nist`: an approval carries the code of the initiating channel; a bare approve is refused.",
    ),
    must(
        4,
        NIST,
        "The code is worth at least six digits from the system's generator and is typed, not chosen from a list.",
    ),
    must(
        5,
        NIST,
        "Wrong codes in a row are counted by user, over all pushes; a new code does not start the count again; the limit is at most 100 (here 5).",
    ),
    must(
        6,
        NIST,
        "The code is in no provider payload, event, broker message or fetched prompt, and is not stored in clear.",
    ),
    must(
        7,
        NIST,
        "A device proves itself by a key bound in an authenticated step; a push address proves nothing; the server holds public keys only.",
    ),
    must(
        8,
        NIST,
        "What a locked phone shows holds no secret and no transaction data.",
    ),
    must(
        9,
        NIST,
        "Pushes since the user's last success are limited; the limit is on by default.",
    ),
    must(10, NIST, "No channel by e-mail."),
    must(
        11,
        NIST,
        "The outcome is reported as single factor unless the proof asserts user verification by a device bound for it.",
    ),
    must(12, NIST, "The outcome never claims to resist phishing."),
    ciba(
        13,
        "Exactly one of login_hint, login_hint_token, id_token_hint.",
    ),
    ciba(14, "The client is confidential and authenticated."),
    ciba(15, "The scope holds openid."),
    ciba(
        16,
        "The answer has auth_req_id, expires_in and, for poll and ping, interval.",
    ),
    ciba(
        17,
        "requested_expiry is a positive integer, honoured within policy.",
    ),
    ciba(18, "The endpoint's errors."),
    ciba(19, "The token endpoint's errors."),
    ciba(20, "slow_down raises the interval by at least 5 s."),
    ciba(
        21,
        "auth_req_id is bound to its client and redeemable once.",
    ),
    ciba(22, "client_notification_token for ping and push."),
    ciba(
        23,
        "Ping: bearer, https, no redirects, no private addresses.",
    ),
    ciba(24, "Push mode keeps the result until it was delivered."),
    ciba(25, "Signed requests."),
    ciba(26, "The FAPI-CIBA profile."),
    ciba(27, "Discovery lists modes, endpoint, algorithms."),
    must(
        28,
        RTS,
        "Profile `psd2`: amount and payee are shown before the approval; a request without them is refused. Art. 5(1)(a).",
    ),
    must(
        29,
        RTS,
        "The proof is specific to what was asked: it is verified against the stored original, never against the caller's. Art. 5(1)(b), (c).",
    ),
    must(
        30,
        RTS,
        "Any change invalidates: contents never change, and an old proof is refused for a new push. Art. 5(1)(d).",
    ),
    must(31, RTS, "Broker and providers see no content. Art. 5(2)."),
    must(
        32,
        RTS,
        "One proof over a batch is specific to its total and its payees. Art. 5(3)(b).",
    ),
    must(
        33,
        RTS,
        "A proof is accepted once, cannot be forged, and follows from no earlier one. Art. 4(1), (2).",
    ),
    must(
        34,
        RTS,
        "A refusal does not tell which element was wrong; five in a row block. Art. 4(3).",
    ),
    must(
        35,
        RTS,
        "Every verdict can be traced: identifiers, data, times. Art. 29.",
    ),
    must(
        36,
        OWASP,
        "What is executed is compared with what was approved, once; no step can be skipped.",
    ),
    must(
        37,
        OWASP,
        "A proof for one kind of question never passes for another.",
    ),
    must(
        38,
        OWASP,
        "A caller may tighten the policy and never weaken it; an older protocol version is refused.",
    ),
    must(
        39,
        OWASP,
        "Context is shown, matching the code is on by default, floods are limited.",
    ),
    must(
        40,
        OWASP,
        "Adding or removing a device takes another device's proof or an admin's act, and tells the user's other devices.",
    ),
];

/// Those that this release does not meet yet.
pub const OPEN: [u8; 0] = [];

/// A test that shows some of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// The function's name.
    pub name: String,
    /// The file it is in.
    pub file: String,
    /// Which demands.
    pub numbers: Vec<u8>,
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every test with such a name in the workspace's crates, in order.
pub fn tests(root: &Path) -> Vec<Shown> {
    let mut found = Vec::new();
    for part in [
        "shared",
        "api",
        "workers",
        "simulator",
        "console",
        "cli",
        "tests",
    ] {
        read_folder(root, &root.join(part), &mut found);
    }
    found.sort();
    found
}

fn read_folder(root: &Path, folder: &Path, found: &mut Vec<Shown>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(root, &path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let file = path.strip_prefix(root).unwrap().display().to_string();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let name = line.trim_start().trim_start_matches("async ");
                let name = name
                    .strip_prefix("fn ")
                    .and_then(|rest| rest.split('(').next());
                let numbers = name.map(numbers_of).unwrap_or_default();
                if let Some(name) = name.filter(|_| !numbers.is_empty()) {
                    found.push(Shown {
                        name: name.to_owned(),
                        file: file.clone(),
                        numbers,
                    });
                }
            }
        }
    }
}

fn numbers_of(name: &str) -> Vec<u8> {
    let Some(rest) = name.strip_prefix("must_") else {
        return Vec::new();
    };
    rest.split('_')
        .map_while(|part| part.parse().ok().filter(|_| part.len() == 2))
        .collect()
}

/// Where a test of this file runs.
fn ground(file: &str) -> &'static str {
    if file.starts_with("tests/") {
        "embedded; servers"
    } else if file.starts_with("shared/tests/store") {
        "SQLite; PostgreSQL"
    } else if file.starts_with("console/tests") {
        "browser"
    } else {
        "code"
    }
}

/// The page. `results`: what became of a test, by name.
pub fn page(tests: &[Shown], results: &BTreeMap<String, String>) -> String {
    let mut page = String::from(
        "# Conformance\n\nWhat the standards demand of out-of-band authentication by push, as forty numbered demands, and the tests that show each of them. A test \
         carries the numbers in its name. This page is written by\n\n```\nscripts/conformance\n```\n\nwhich runs these tests against real servers; the suite fails when the page and the tests differ. \
         `embedded; servers`: end to end, real processes, on SQLite with the embedded queue\nand on PostgreSQL with RabbitMQ. `SQLite; PostgreSQL`: transactions on both databases. `code`: what needs neither.\n\n\
         | no. | from | demand | test | where | result |\n|---|---|---|---|---|---|\n",
    );
    for must in &MUSTS {
        let of: Vec<_> = tests
            .iter()
            .filter(|test| test.numbers.contains(&must.number))
            .collect();
        let Must {
            number,
            source,
            text,
            ..
        } = must;
        if of.is_empty() {
            let (test, result) = must
                .exempt
                .map_or(("none", "MISSING"), |why| (why, "not applicable"));
            writeln!(
                page,
                "| {number} | {source} | {text} | {test} | | {result} |"
            )
            .unwrap();
        }
        for (n, test) in of.into_iter().enumerate() {
            let result = results.get(&test.name).map_or("not run", String::as_str);
            let (number, source, text) = if n == 0 {
                (number.to_string(), *source, *text)
            } else {
                (String::new(), "", "")
            };
            let (name, file) = (&test.name, &test.file);
            let ground = ground(file);
            writeln!(
                page,
                "| {number} | {source} | {text} | `{name}` in `{file}` | {ground} | {result} |"
            )
            .unwrap();
        }
    }
    page
}

/// The demands that no test shows although one should.
pub fn missing(tests: &[Shown]) -> Vec<u8> {
    let shown = |number| tests.iter().any(|test| test.numbers.contains(&number));
    MUSTS
        .iter()
        .filter(|must| must.exempt.is_none() && !shown(must.number))
        .map(|must| must.number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{MUSTS, OPEN, missing, numbers_of, page, root, tests};

    #[test]
    fn the_numbers_are_in_order() {
        assert!(MUSTS.iter().map(|must| must.number).eq(1..=40));
        assert_eq!(numbers_of("must_07_40_of_20_phones"), [7, 40]);
        assert!(numbers_of("must_be_json").is_empty());
    }

    #[test]
    fn every_demand_has_a_test_and_the_page_lists_them_as_passed() {
        let found = tests(&root());
        assert_eq!(missing(&found), OPEN, "demands that no test shows");
        let passed = found
            .iter()
            .map(|test| (test.name.clone(), "pass".to_owned()))
            .collect();
        let written = std::fs::read_to_string(root().join("docs/conformance.md")).unwrap();
        assert!(written == page(&found, &passed), "run scripts/conformance");
    }
}
