//! The newest pushes.

use super::Desk;
use crate::html::badge;
use crate::words;
use maud::{Markup, html};
use shared::clock::{Clock as _, Millis, SystemClock, rfc3339};
use shared::domain::PushState;
use shared::store::{Error, Page, PushRow};

const NEWEST: i64 = 50;

/// The newest pushes, and who was asked.
pub(super) struct List {
    rows: Vec<(PushRow, String)>,
    now: Millis,
}

impl List {
    pub(super) async fn read(desk: &Desk) -> Result<Self, Error> {
        let page = Page {
            limit: NEWEST,
            ..Page::default()
        };
        let mut rows = Vec::new();
        for row in desk.store.pushes(&desk.tenant, &page).await? {
            let name = desk.name(&row.user).await?;
            rows.push((row, name));
        }
        Ok(Self {
            rows,
            now: SystemClock.now(),
        })
    }

    /// What can change.
    pub(super) fn state(&self) -> Vec<(&str, &str, &str)> {
        let all = self.rows.iter();
        all.map(|(row, _)| (row.id.as_str(), row.state.as_str(), row.reason.as_str()))
            .collect()
    }

    fn count(&self, is: impl Fn(PushState) -> bool) -> usize {
        self.rows.iter().filter(|(row, _)| is(row.state)).count()
    }

    pub(super) fn view(&self) -> Markup {
        let counts = [
            ("open", self.count(|state| !state.is_terminal())),
            ("approved", self.count(|state| state == PushState::Approved)),
            ("denied", self.count(|state| state == PushState::Denied)),
            ("expired", self.count(|state| state == PushState::Expired)),
            (
                "otherwise ended",
                self.count(|state| {
                    matches!(
                        state,
                        PushState::Cancelled | PushState::Failed | PushState::Completed
                    )
                }),
            ),
        ];
        let said: Vec<String> = counts
            .iter()
            .map(|(word, n)| format!("{n} {word}"))
            .collect();
        html! {
            div id="live" {
                h1 { "Newest pushes" }
                p.summary id="summary" role="status" aria-live="polite" {
                    @if self.rows.is_empty() { "No push yet." } @else { "Of the newest " (self.rows.len()) ": " (said.join(", ")) "." }
                }
                @if self.rows.is_empty() {
                    div.empty {
                        p { "Send one, and it appears here." }
                        p { code { "countersign send ada \"Sign in to Payroll\" --wait" } }
                    }
                } @else {
                    div.wide tabindex="0" role="region" aria-label="Newest pushes" {
                        table.list {
                            caption.quiet { "The newest pushes of this store, newest first" }
                            thead { tr { th scope="col" { "Title" } th scope="col" { "State" } th scope="col" { "User" } th scope="col" { "Kind" } th scope="col" { "Age" } } }
                            tbody { @for (row, name) in &self.rows { (self.row(row, name)) } }
                        }
                    }
                }
            }
        }
    }

    fn row(&self, row: &PushRow, name: &str) -> Markup {
        let age = self.now - row.created_at;
        html! {
            tr {
                th scope="row" {
                    a id={ "to-" (row.id) } href={ "/p/" (row.id) } { (row.content.title) }
                    span.under { (row.rp) code { " · " (row.id) } }
                }
                td { (badge(row.state.as_str())) @if !row.reason.is_empty() { span.under { (words::plain(&row.reason)) } } }
                td { (name) }
                td { (row.kind) }
                td { time datetime=(rfc3339(row.created_at)) data-age=(age) title=(rfc3339(row.created_at)) { (words::ago(age)) } }
            }
        }
    }
}
