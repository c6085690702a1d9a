//! The life of one push.

use super::Desk;
use crate::html::badge;
use crate::words;
use maud::{Markup, html};
use shared::clock::{Clock as _, Millis, SystemClock, rfc3339};
use shared::domain::{Context, DeliveryState, Target};
use shared::id::{DeviceId, PushId};
use shared::store::{DeliveryRow, Device, Error, PushRow};

/// A push, its deliveries, and the devices by name.
pub(super) struct Timeline {
    push: PushRow,
    deliveries: Vec<DeliveryRow>,
    devices: Vec<Device>,
    user: String,
    now: Millis,
}

/// What stands at one point of the line.
struct Step {
    at: Millis,
    state: &'static str,
    what: String,
    more: Vec<String>,
}

impl Timeline {
    /// `None`: the store has no such push.
    pub(super) async fn read(desk: &Desk, push: &PushId) -> Result<Option<Self>, Error> {
        let found = desk.store.push(push).await?;
        let Some(push) = found.filter(|found| found.store == desk.tenant) else {
            return Ok(None);
        };
        Ok(Some(Self {
            deliveries: desk.store.deliveries(&push.id).await?,
            devices: desk.store.devices(&desk.tenant, &push.user).await?,
            user: desk.name(&push.user).await?,
            now: SystemClock.now(),
            push,
        }))
    }

    pub(super) fn id(&self) -> &PushId {
        &self.push.id
    }

    /// Nothing here will change any more.
    pub(super) fn is_over(&self) -> bool {
        self.push.ended_at.is_some() && self.deliveries.iter().all(|one| one.state.is_terminal())
    }

    /// What can change.
    pub(super) fn state(&self) -> Vec<(&str, &str, Millis)> {
        let push = (
            self.push.state.as_str(),
            self.push.reason.as_str(),
            self.push.wrong_codes,
        );
        let each = self.deliveries.iter();
        let each = each.map(|one| (one.state.as_str(), one.reason.as_str(), one.updated_at));
        std::iter::once(push).chain(each).collect()
    }

    fn device(&self, id: &DeviceId) -> String {
        let found = self.devices.iter().find(|device| device.id == *id);
        found.map_or_else(|| id.to_string(), |device| device.name.clone())
    }

    fn steps(&self) -> Vec<Step> {
        let push = &self.push;
        let mut steps = vec![Step {
            at: push.created_at,
            state: "accepted",
            what: "Taken".to_owned(),
            more: vec![format!("for {}, {}", self.user, target(&push.target))],
        }];
        let mut deliveries: Vec<_> = self.deliveries.iter().collect();
        deliveries.sort_by_key(|one| one.updated_at);
        steps.extend(deliveries.into_iter().map(|one| self.delivery(one)));
        if let Some(at) = push.ended_at {
            let mut more = vec![words::plain(&push.reason)];
            if let Some(device) = &push.answered_by {
                more.push(format!(
                    "answered on {}, signature checked",
                    self.device(device)
                ));
            }
            steps.push(Step {
                at,
                state: push.state.as_str(),
                what: "Ended".to_owned(),
                more,
            });
        }
        steps
    }

    fn delivery(&self, one: &DeliveryRow) -> Step {
        let mut more: Vec<String> = said(one.state).map(str::to_owned).into_iter().collect();
        if !one.reason.is_empty() {
            more.push(words::plain(&one.reason));
        }
        if let Some(decision) = &one.decision {
            more.push(format!("its answer: {decision}"));
        }
        more.push(match one.attempts {
            0 => "its provider was not called".to_owned(),
            1 => "its provider was called once".to_owned(),
            n => format!("its provider was called {n} times"),
        });
        Step {
            at: one.updated_at,
            state: one.state.as_str(),
            what: self.device(&one.device),
            more,
        }
    }

    pub(super) fn view(&self) -> Markup {
        let push = &self.push;
        let lasted = push.ended_at.map(|at| words::span(at - push.created_at));
        html! {
            div id="live" {
                p.back { a href="/" { span aria-hidden="true" { "← " } "Newest pushes" } }
                h1 { (push.content.title) }
                p.summary id="summary" role="status" aria-live="polite" {
                    (badge(push.state.as_str()))
                    @match lasted {
                        Some(span) => { " after " (span) },
                        None => { " until an answer comes or time is up" },
                    }
                }
                div.two {
                    section aria-labelledby="line" {
                        h2 id="line" { "What happened" }
                        ol.timeline { @for step in self.steps() { (self.step(&step)) } }
                    }
                    section aria-labelledby="facts" {
                        h2 id="facts" { "What was asked" }
                        (self.facts())
                    }
                }
            }
        }
    }

    fn step(&self, step: &Step) -> Markup {
        let after = step.at - self.push.created_at;
        html! {
            li {
                div.head {
                    p.what { (step.what) }
                    (badge(step.state))
                    time datetime=(rfc3339(step.at)) title=(rfc3339(step.at)) { "+" (words::span(after)) }
                }
                @for line in &step.more { p.under { (line) } }
            }
        }
    }

    fn facts(&self) -> Markup {
        let push = &self.push;
        let age = self.now - push.created_at;
        html! {
            table.facts {
                caption.quiet { "The push" }
                tbody {
                    (fact("Relying party", &push.rp))
                    @if let Some(message) = &push.content.message { (fact("Message", message)) }
                    @for line in &push.content.details { (fact(&line.label, &line.value)) }
                    @for (label, value) in push.content.context.iter().flat_map(Context::lines) { (fact(label, value)) }
                    (fact("User", &self.user))
                    (fact("Kind", push.kind.as_str()))
                    (fact("Lane", push.lane.as_str()))
                    (fact("Match code", if push.match_required { "must be typed" } else { "none" }))
                    @if push.wrong_codes > 0 { (fact("Wrong codes", &push.wrong_codes.to_string())) }
                    tr { th scope="row" { "Asked" } td { time datetime=(rfc3339(push.created_at)) data-age=(age) { (words::ago(age)) } } }
                    tr { th scope="row" { "Answer until" } td { (clock(push.expires_at)) } }
                    tr { th scope="row" { "Push" } td { code { (push.id) } } }
                }
            }
        }
    }
}

fn fact(label: &str, value: &str) -> Markup {
    html! { tr { th scope="row" { (label) } td { (value) } } }
}

/// The time of day; the whole of it for whoever points there.
fn clock(at: Millis) -> Markup {
    let whole = rfc3339(at);
    let day = whole.get(11..19).unwrap_or(&whole);
    html! { time datetime=(whole) title=(whole) { (day) " UTC" } }
}

fn target(target: &Target) -> &'static str {
    match target {
        Target::All => "on all devices",
        Target::Preferred { .. } => "on the preferred device",
        Target::Devices { .. } => "on chosen devices",
    }
}

/// What a delivery's state means to a person, where the word alone does not say it.
fn said(state: DeliveryState) -> Option<&'static str> {
    match state {
        DeliveryState::Queued => Some("waits for its turn"),
        DeliveryState::Sending => Some("on its way to the provider"),
        DeliveryState::Sent => Some("the provider took it"),
        DeliveryState::RetryWait => Some("waits for the next try"),
        DeliveryState::Fetched => Some("shown on the phone"),
        DeliveryState::Withdrawn => Some("taken off the phone"),
        DeliveryState::Failed => Some("not woken; it may still look by itself"),
        DeliveryState::Skipped => Some("not woken: it has no address, or there was no time"),
        DeliveryState::Answered | DeliveryState::Expired => None,
    }
}
