//! How the phones look.

use super::board::Board;
use super::screen::{Card, Ending, Link, Notice, Past, Screen};
use crate::html::Shell;
use crate::words;
use maud::{Markup, PreEscaped, html};
use qrcode::{EcLevel, QrCode, render::svg};
use shared::clock::{Clock as _, Millis, SystemClock};
use shared::domain::{Kind, NoticeWord, Provider};
use simulator::Phone;
use simulator::phone::Notice as Told;
use std::fmt::Write as _;

/// How many waiting prompts have room on a phone.
const CARDS: usize = 4;

/// Percent-encoded for a path segment (RFC 3986, unreserved characters kept).
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(out, "%{byte:02X}").ok();
        }
    }
    out
}

/// The whole page.
pub(super) fn page(board: &Board) -> Markup {
    let shell = Shell {
        title: "Phones · Countersign",
        assets: "/phone",
        events: Some("/phone/events"),
        fragment: "/phone/screens",
        at: "/phone",
    };
    shell.page(&html! {
        h1.quiet { "Phones" }
        (screens(board))
        form.paste method="post" action="/phone/enrol" {
            label for="link" { "Add a phone with a link, as its camera would" }
            input id="link" name="link" type="text" required autocomplete="off" spellcheck="false" placeholder="countersign://enrol?…";
            (kinds("paste"))
        }
        noscript { p.hint { a href="/phone" { "Look again" } " to see what has come in since." } }
    })
}

/// The part of the page that changes.
pub(super) fn screens(board: &Board) -> Markup {
    let now = SystemClock.now();
    board.show(|phones, screens| {
        let shown = || {
            let of = |phone: &Phone| screens.get(phone.name());
            phones
                .iter()
                .filter_map(move |phone| of(phone).map(|screen| (phone, screen)))
        };
        html! {
            div id="live" {
                p.summary id="summary" role="status" aria-live="polite" { (summary(shown())) }
                div.phones {
                    @for (at, (phone, screen)) in shown().enumerate() {
                        (one(at, phone, screen, now))
                    }
                    @if phones.is_empty() {
                        p.hint { "There is no phone in the fleet yet." }
                    }
                }
            }
        }
    })
}

/// One sentence for each phone: read aloud when it changes.
fn summary<'a>(shown: impl Iterator<Item = (&'a Phone, &'a Screen)>) -> String {
    let sentence = |(phone, screen): (&Phone, &Screen)| {
        let name = phone.name();
        let newest = screen.cards.last();
        let last = screen.past().next();
        match (screen.airplane, screen.cards.len(), newest, last) {
            (true, ..) => format!("{name} is in airplane mode."),
            (_, 1, Some(card), _) => {
                format!(
                    "{name}: {} asks: {}.",
                    card.text("relying_party"),
                    card.text("title")
                )
            }
            (_, n, Some(card), _) => {
                format!(
                    "{name}: {n} requests wait, the newest: {}.",
                    card.text("title")
                )
            }
            (_, _, None, Some(past)) => format!("{name}: {}.", past.ending.words()),
            (_, _, None, None) => format!("{name} waits for a push."),
        }
    };
    shown.map(sentence).collect::<Vec<_>>().join(" ")
}

fn one(at: usize, phone: &Phone, screen: &Screen, now: Millis) -> Markup {
    let path = format!("/phone/{}", segment(phone.name()));
    let provider = match phone.provider() {
        Provider::Apns => "APNs, simulated",
        Provider::Fcm => "FCM, simulated",
    };
    let (lamp, state) = match (screen.airplane, screen.link) {
        (true, _) => ("off", "Airplane mode"),
        (false, Link::Online) => ("on", "Live"),
        (false, Link::New) => ("off", "Starting"),
        (false, Link::Unknown) => ("bad", "Not registered"),
        (false, Link::Forged) => ("bad", "Refused: not signed by the server"),
        (false, Link::Offline) => ("bad", "No connection"),
    };
    let over = screen.cards.len().saturating_sub(CARDS);
    html! {
        section.phone id={ "phone-" (at) } aria-labelledby={ "name-" (at) } data-version={ (phone.name()) ":" (screen.version) } {
            header.phone-head {
                div {
                    h2 id={ "name-" (at) } { (phone.name()) }
                    p.provider { (provider) }
                }
                p.lamp { span.dot.(lamp) aria-hidden="true" {} (state) }
            }
            div.lock {
                p.clock aria-hidden="true" data-clock="" {}
                @if screen.airplane {
                    div.idle { span.glyph aria-hidden="true" { "✈" } p { "Airplane mode: pushes do not arrive" } }
                } @else if screen.cards.is_empty() {
                    div.idle { span.pulse aria-hidden="true" {} p { "Waiting for a push" } }
                } @else {
                    @for card in screen.cards.iter().rev().take(CARDS) {
                        (prompt(at, &path, card, now))
                    }
                    @if over > 0 { p.more { "and " (over) " more" } }
                }
                @for notice in screen.notices.iter().take(CARDS).filter(|_| !screen.airplane) { (told(at, &path, notice)) }
                @if let Some(link) = &screen.invite { (invitation(at, link)) }
                @if screen.past().next().is_some() {
                    ul.past aria-label="Before" {
                        @for one in screen.past() { (ended(one)) }
                    }
                }
            }
            form.switches method="post" action={ (path) "/invite" } {
                button.switch id={ "invite-" (at) } { @if screen.invite.is_some() { "Hide the code" } @else { "Add a phone" } }
            }
            form.switches method="post" action={ (path) "/airplane" } {
                input type="hidden" name="on" value=(!screen.airplane);
                button.switch id={ "airplane-" (at) } role="switch" aria-checked=(screen.airplane) {
                    span.track aria-hidden="true" {}
                    "Airplane mode"
                    span.state aria-hidden="true" { @if screen.airplane { "on" } @else { "off" } }
                }
            }
        }
    }
}

/// The two buttons that let a new phone in.
fn kinds(at: &str) -> Markup {
    html! {
        div.choices {
            button.choice id={ "apns-" (at) } name="provider" value="apns" { "A new iPhone" }
            button.choice id={ "fcm-" (at) } name="provider" value="fcm" { "A new Android phone" }
        }
    }
}

/// A link for another phone, to be scanned or clicked. It lets one in, whoever is first.
fn invitation(at: usize, link: &str) -> Markup {
    let id = format!("invitation-{at}");
    html! {
        div.card id=(id) role="group" aria-labelledby={ (id) "-title" } {
            h3 id={ (id) "-title" } { "Scan it with the new phone" }
            @if let Some(drawing) = drawn(link) {
                div.qr role="img" aria-label="QR code of the link below" { (PreEscaped(drawing)) }
            }
            form.answer method="post" action="/phone/enrol" {
                label for={ (id) "-link" } { "or use the link; it works once, for ten minutes" }
                input id={ (id) "-link" } name="link" type="text" readonly value=(link);
                (kinds(&id))
            }
        }
    }
}

/// The QR code of a text as SVG; `None` where it is too long for one.
fn drawn(text: &str) -> Option<String> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let mut drawing = code.render::<svg::Color<'_>>();
    drawing.min_dimensions(200, 200);
    let drawing = drawing.build();
    // Inside of a page there is no place for the declaration before it.
    drawing.find("<svg").map(|at| drawing[at..].to_owned())
}

fn told(at: usize, path: &str, notice: &Told) -> Markup {
    let what = match notice.what {
        NoticeWord::Added => "was added to your account",
        NoticeWord::Blocked => "was blocked",
        NoticeWord::Unblocked => "was unblocked",
        NoticeWord::Revoked => "was removed",
        NoticeWord::AddressChanged => "gets its wake-ups at a new address",
    };
    let id = format!("notice-{at}-{}", notice.id);
    html! {
        div.card id=(id) role="group" aria-labelledby={ (id) "-title" } {
            h3 id={ (id) "-title" } { (notice.name) " " (what) }
            form.answer method="post" action={ (path) "/notice" } {
                input type="hidden" name="notice" value=(notice.id);
                div.choices {
                    button.choice id={ (id) "-seen" } name="act" value="seen" { "OK" }
                    @if notice.what != NoticeWord::Revoked {
                        button.choice.fraud id={ (id) "-remove" } name="act" value="remove" { "This wasn't me: remove it" }
                    }
                }
            }
        }
    }
}

fn prompt(at: usize, path: &str, card: &Card, now: Millis) -> Markup {
    let id = |part: &str| format!("{part}-{at}-{}", card.push());
    let message = card.text("message");
    let (payment, details, context) = (card.payment(), card.details(), card.context());
    html! {
        article.card id=(id("card")) aria-labelledby=(id("title")) {
            p.rp { (card.text("relying_party")) }
            h3 id=(id("title")) { (card.text("title")) }
            @if !message.is_empty() { p.message { (message) } }
            @if let Some(quorum) = card.quorum() { p.message { (quorum) } }
            @if !payment.is_empty() {
                table.details.payment {
                    caption.quiet { "Payment" }
                    tbody {
                        @for (label, value) in payment {
                            tr { th scope="row" { (label) } td { (value) } }
                        }
                    }
                }
            }
            @if !details.is_empty() {
                table.details {
                    caption.quiet { "Details" }
                    tbody {
                        @for (label, value) in details {
                            tr { th scope="row" { (label) } td { (value) } }
                        }
                    }
                }
            }
            @if !context.is_empty() {
                table.details.context {
                    caption { "Where this comes from" }
                    tbody {
                        @for (label, value) in context {
                            tr { th scope="row" { (label) } td { (value) } }
                        }
                    }
                }
            }
            (time_left(card.left(now)))
            (choices(&id, path, card))
        }
    }
}

fn time_left(left: Millis) -> Markup {
    let seconds = (left + 999) / 1000;
    html! {
        p.left data-left=(left) {
            span.digits aria-hidden="true" { (seconds / 60) ":" (format!("{:02}", seconds % 60)) }
            span.words { (words::left(left)) " left" }
        }
    }
}

fn choices(id: &impl Fn(&str) -> String, path: &str, card: &Card) -> Markup {
    let kind = card.kind();
    let typed = kind != Some(Kind::Process) && card.prompt.match_required;
    let wrong = matches!(card.notice, Some(Notice::NoCode | Notice::WrongCode));
    let (said, code) = (id("said"), id("code"));
    html! {
        form.answer method="post" action={ (path) "/answer" } {
            input type="hidden" name="push" value=(card.push());
            @if typed {
                label for=(code) { "Type the six digits from the screen where you began" }
                input.code id=(code) name="code" type="text" inputmode="numeric" autocomplete="off" pattern="\\s*([0-9]\\s*){6}"
                    maxlength="12" required placeholder="······" title="six digits" data-tries=(card.tries)
                    aria-invalid=[wrong.then_some("true")] aria-describedby=[card.notice.map(|_| said.as_str())];
            }
            @if let Some(notice) = card.notice {
                p.notice id=(said) role="alert" { span aria-hidden="true" { "⚠" } (notice.words()) }
            }
            @if typed { (keypad(&code)) }
            div.choices {
                @match (kind, card.link()) {
                    (Some(Kind::Process), Some(link)) => {
                        a.choice.yes id=(id("open")) href=(link) target="_blank" rel="noopener noreferrer" { span { span aria-hidden="true" { "↗ " } "Open" } }
                    }
                    (Some(Kind::Process), None) => {
                        p.notice { "Its link cannot be opened" }
                    }
                    _ => {
                        button.choice.yes id=(id("approve")) name="decision" value="approve" {
                            span { span aria-hidden="true" { "✓ " } @if kind == Some(Kind::Generic) { "Accept" } @else { "Approve" } }
                        }
                    }
                }
                button.choice.no id=(id("deny")) name="decision" value="deny" formnovalidate { span { span aria-hidden="true" { "✕ " } "Deny" } }
                button.choice.fraud id=(id("fraud")) name="decision" value="fraud" formnovalidate { span { span aria-hidden="true" { "⚑ " } "This wasn't me" } }
            }
        }
    }
}

/// For the mouse. Shown by the script, without which it does nothing; a keyboard has the digits anyway.
fn keypad(code: &str) -> Markup {
    html! {
        div.keypad role="group" aria-label="Keypad" data-keypad=(code) hidden {
            @for key in ["1", "2", "3", "4", "5", "back", "6", "7", "8", "9", "0", "clear"] {
                @match key {
                    "back" => button type="button" data-key=(key) aria-label="Delete the last digit" { "⌫" },
                    "clear" => button type="button" data-key=(key) aria-label="Clear" { "C" },
                    digit => button type="button" data-key=(digit) { (digit) },
                }
            }
        }
    }
}

fn ended(past: &Past) -> Markup {
    let (glyph, tone) = past.ending.look();
    html! {
        li.ended.(tone) data-push=(past.push) {
            span.glyph aria-hidden="true" { (glyph) }
            div { p.what { (past.ending.words()) } p.title { (past.title) } }
        }
    }
}

impl Notice {
    fn words(self) -> &'static str {
        match self {
            Self::NoCode => "Type all six digits first; nothing was sent.",
            Self::WrongCode => {
                "That code was not right. Look at the screen where you began and try again."
            }
            Self::Refused => "The answer was refused. Nothing has changed.",
            Self::Unsent => {
                "The server did not answer. Press again to send the same answer once more."
            }
        }
    }
}

impl Ending {
    fn words(self) -> &'static str {
        match self {
            Self::Approved => "Approved",
            Self::Denied => "Denied",
            Self::Reported => "Denied and reported: it wasn't you",
            Self::Accepted => "Accepted",
            Self::Before => "Already answered on this phone",
            Self::Elsewhere => "Answered on another device",
            Self::Opened => "Opened: it goes on in the page",
            Self::ProcessApproved => "The process ended: approved",
            Self::ProcessDenied => "The process ended: denied",
            Self::Expired => "Expired",
            Self::Cancelled => "Cancelled by the sender",
            Self::Failed => "Ended without an answer",
            Self::TooManyCodes => "Ended after too many wrong codes",
            Self::Completed => "Completed",
            Self::Gone => "No longer asked on this phone",
        }
    }

    /// A sign and a colour.
    fn look(self) -> (&'static str, &'static str) {
        match self {
            Self::Approved | Self::Accepted | Self::ProcessApproved | Self::Completed => {
                ("✓", "good")
            }
            Self::Denied | Self::Reported | Self::ProcessDenied => ("✕", "bad"),
            Self::TooManyCodes | Self::Failed => ("⚠", "bad"),
            Self::Elsewhere | Self::Before => ("⇄", "plain"),
            Self::Opened => ("↗", "plain"),
            Self::Expired => ("⌛", "plain"),
            Self::Cancelled | Self::Gone => ("⊘", "plain"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn names_survive_the_path() {
        assert_eq!(segment("Ada's iPhone/2"), "Ada%27s%20iPhone%2F2");
    }
}
