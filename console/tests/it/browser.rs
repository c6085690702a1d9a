//! The pages as a person has them: in a real browser.

use crate::bed::{Bed, IPHONE};
use crate::webdriver::{Browser, Driver};
use http::Method;
use serde_json::json;
use std::panic::AssertUnwindSafe;

const FIRST: &str = "document.querySelector('#phone-0')";
const SECOND: &str = "document.querySelector('#phone-1')";

/// Runs `test` in a browser, and ends the browser however the test goes.
async fn in_a_browser(test: impl AsyncFnOnce(&Bed, &Browser<'_>)) {
    use futures_util::FutureExt as _;
    let Some(driver) = Driver::start().await else {
        return;
    };
    let bed = Bed::start().await;
    let browser = driver.browser().await;
    let result = AssertUnwindSafe(test(&bed, &browser)).catch_unwind().await;
    browser.close().await;
    driver.end().await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
    bed.end().await;
}

/// Errors of the page since it was opened, and whatever it asked another host for.
async fn is_clean(bed: &Bed, browser: &Browser<'_>) {
    let foreign = format!(
        "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('{}/'))",
        bed.url
    );
    assert_eq!(browser.eval(&foreign).await, json!([]));
    assert_eq!(browser.eval("window.faults").await, json!([]));
}

/// Opens `path`, and remembers that it was not loaded again, and what goes wrong from before its first line on.
async fn open(bed: &Bed, browser: &Browser<'_>, path: &str) {
    let watch = "window.faults = []; window.stayed = true;
        addEventListener('error', e => faults.push(String(e.message)));
        addEventListener('unhandledrejection', e => faults.push(String(e.reason)));
        addEventListener('securitypolicyviolation', e => faults.push(e.violatedDirective + ' ' + e.blockedURI));
        addEventListener('beforeunload', () => { window.stayed = false; });";
    let command = "Page.addScriptToEvaluateOnNewDocument";
    browser.devtools(command, json!({"source": watch})).await;
    browser.open(&format!("{}{path}", bed.url)).await;
    browser.eval("window.mark = 'the same page'").await;
    browser
        .until("document.querySelector('#connection').dataset.state === 'on'")
        .await;
}

fn shows(phone: &str, text: &str) -> String {
    format!("{phone}.innerText.includes({})", json!(text))
}

fn card(phone: &str) -> String {
    format!("{phone}.querySelector('article')")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_arrives_is_approved_with_its_code_and_leaves_the_other_phone() {
    in_a_browser(async |bed, browser| {
        open(bed, browser, "/phone").await;
        browser.until(&shows(FIRST, "Waiting for a push")).await;
        browser.picture("phone-waiting.png").await;
        let asked = bed
            .ask(json!({
                "message": "Somebody with your password is at the door. Is it you?",
                "details": [{"label": "Place", "value": "Cork, Ireland"}, {"label": "Browser", "value": "Firefox on Linux"}],
            }))
            .await;
        browser.until(&card(FIRST)).await;
        browser.until(&card(SECOND)).await;
        browser.until(&shows(FIRST, "Sign in to Payroll")).await;
        browser
            .until("document.querySelector('#summary').innerText.includes('payroll asks: Sign in to Payroll')")
            .await;
        browser.picture("phone-asked.png").await;

        // A wrong code first: it says so, the field is empty and has the focus, and the card stays.
        let wrong = if asked.code == "000000" { "111111" } else { "000000" };
        browser.type_into("#phone-0 input.code", wrong).await;
        browser.click("#phone-0 button[value=approve]").await;
        browser.until(&shows(FIRST, "That code was not right")).await;
        browser
            .until("document.activeElement.matches('#phone-0 input.code') && document.activeElement.value === ''")
            .await;
        browser.picture("phone-wrong.png").await;

        // What is typed survives news of another push: half the code by keyboard, half by keypad.
        let (left, right) = asked.code.split_at(3);
        browser.type_into("#phone-0 input.code", left).await;
        let other = bed.ask(json!({"title": "Another"})).await;
        let two = format!("{FIRST}.querySelectorAll('article').length === 2");
        browser.until(&two).await;
        let field = format!("code-0-{}", asked.id);
        let typed = format!("document.getElementById('{field}').value");
        assert_eq!(browser.eval(&typed).await, json!(left));
        let focused = browser.eval("document.activeElement.id").await;
        assert_eq!(focused, json!(field));
        bed.api(Method::POST, &format!("pushes/{}/cancel", other.id), &json!({}))
            .await;
        let one = format!("{FIRST}.querySelectorAll('article').length === 1");
        browser.until(&one).await;
        for digit in right.chars() {
            browser
                .click(&format!("#phone-0 [data-key='{digit}']"))
                .await;
        }
        assert_eq!(browser.eval(&typed).await, json!(asked.code));

        browser.click("#phone-0 button[value=approve]").await;
        browser.until(&shows(FIRST, "Approved")).await;
        browser
            .until(&shows(SECOND, "Answered on another device"))
            .await;
        assert_eq!(browser.eval(&card(FIRST)).await, json!(null));
        assert_eq!(browser.eval(&card(SECOND)).await, json!(null));
        // The focus did not fall off the page.
        let place = format!("{FIRST}.contains(document.activeElement)");
        assert_eq!(browser.eval(&place).await, json!(true));
        assert_eq!(browser.eval("window.mark").await, json!("the same page"));
        browser.picture("phone-approved.png").await;
        is_clean(bed, browser).await;

        open(bed, browser, "/").await;
        browser
            .until("document.querySelector('table').innerText.includes('approved')")
            .await;
        browser.picture("pushes.png").await;
        browser.click(&format!("#to-{}", asked.id)).await;
        browser
            .until("document.body.innerText.includes('signature checked')")
            .await;
        browser.picture("push.png").await;
        is_clean(bed, browser).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_follows_a_push_without_reloading() {
    in_a_browser(async |bed, browser| {
        open(bed, browser, "/").await;
        browser
            .until("document.body.innerText.includes('No push yet')")
            .await;
        let asked = bed.ask(json!({})).await;
        let row = format!("document.querySelector('#to-{}')", asked.id);
        browser.until(&row).await;
        assert_eq!(browser.eval("window.mark").await, json!("the same page"));
        open(bed, browser, &format!("/p/{}", asked.id)).await;
        // Somebody reads the phones, so that there is a card to deny.
        bed.shows("/phone", |page| page.contains("<article")).await;
        let form = format!("push={}&decision=fraud", asked.id);
        bed.post("/phone/Ada%27s%20Pixel/answer", &form).await;
        browser
            .until("document.body.innerText.includes('Ended')")
            .await;
        browser
            .until("document.body.innerText.includes('fraud reported')")
            .await;
        assert_eq!(browser.eval("window.mark").await, json!("the same page"));
        is_clean(bed, browser).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_works_without_the_script() {
    in_a_browser(async |bed, browser| {
        let off = json!({"value": true});
        browser
            .devtools("Emulation.setScriptExecutionDisabled", off)
            .await;
        let asked = bed.ask(json!({})).await;
        bed.shows("/phone", |page| page.matches("<article").count() == 2)
            .await;
        browser.open(&format!("{}/phone", bed.url)).await;
        browser.type_into("#phone-0 input.code", &asked.code).await;
        browser.click("#phone-0 button[value=approve]").await;
        bed.shows("/phone/screens", |page| {
            crate::bed::phone(page, IPHONE).contains("Approved")
        })
        .await;
        browser.open(&format!("{}/phone", bed.url)).await;
        browser.click("#airplane-0").await;
        bed.shows("/phone", |page| page.contains("pushes do not arrive"))
            .await;
    })
    .await;
}

/// WCAG 2.2: contrast of texts (1.4.3), size of targets (2.5.8), and nothing that has to be scrolled sideways (1.4.10).
#[tokio::test(flavor = "multi_thread")]
async fn both_schemes_can_be_read_and_every_target_be_hit() {
    in_a_browser(async |bed, browser| {
        let asked = bed
            .ask(json!({"message": "Really?", "details": [{"label": "Place", "value": "Cork"}]}))
            .await;
        bed.shows("/phone", |page| page.matches("<article").count() == 2)
            .await;
        bed.post(
            "/phone/Ada%27s%20Pixel/answer",
            &format!("push={}&decision=approve&code=1", asked.id),
        )
        .await;
        for scheme in ["light", "dark"] {
            for (name, path) in [
                ("phone", "/phone".to_owned()),
                ("pushes", "/".to_owned()),
                ("push", format!("/p/{}", asked.id)),
            ] {
                for (size, width) in [("wide", 1000), ("narrow", 320)] {
                    browser.look(scheme, (width, 1100)).await;
                    open(bed, browser, &path).await;
                    // Cards come in with a movement that ends.
                    browser
                        .until("document.getAnimations().every(a => a.effect.getTiming().iterations === Infinity || a.playState === 'finished')")
                        .await;
                    browser.picture(&format!("{name}-{scheme}-{size}.png")).await;
                    let faults = browser.eval(include_str!("looks.js")).await;
                    assert_eq!(faults, json!([]), "{path} {scheme} {width}");
                }
            }
        }
    })
    .await;
}
