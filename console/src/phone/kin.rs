//! A person's other phones: one lets another in, is told what happened to the others, and takes one away.

use super::board::Board;
use serde::Deserialize;
use shared::domain::Provider;
use simulator::phone::Link;
use simulator::{Behaviour, Phone};

/// What a new phone is given instead of a camera.
#[derive(Deserialize)]
pub(super) struct Enrol {
    /// `countersign://enrol?…`
    link: String,
    /// `apns` or `fcm`.
    provider: String,
}

/// What is done about a notice.
#[derive(Deserialize)]
pub(super) struct Notified {
    notice: String,
    /// `seen`, or `remove`: the device that it is about.
    act: String,
}

impl Enrol {
    /// A phone out of the box enrols and joins the fleet. `false`: it did not get in.
    pub(super) async fn run(&self, board: &Board) -> bool {
        let provider = match self.provider.as_str() {
            "apns" => Provider::Apns,
            "fcm" => Provider::Fcm,
            _ => return false,
        };
        let Ok(link) = self.link.parse::<Link>() else {
            return false;
        };
        let fleet = board.fleet();
        // Of one more name than there are phones, one is free.
        let phones = fleet.phones().len();
        let name = (phones + 1..=2 * phones + 1)
            .map(|n| format!("Phone {n}"))
            .find(|name| fleet.phone(name).is_none());
        let phone = Phone::new(provider, name.unwrap_or_default());
        if let Err(error) = phone.enrol(&link).await {
            tracing::info!(%error, "a phone could not enrol");
            return false;
        }
        fleet.add(&phone, Behaviour::Manual);
        // The link is spent, whoever showed it.
        for one in fleet.phones() {
            board.with(one.name(), |screen| (screen.invite.take().is_some(), ()));
        }
        true
    }
}

/// Shows a link for another phone; takes it away where one is shown already.
pub(super) async fn invite(board: &Board, phone: &Phone) {
    let shown = board.with(phone.name(), |screen| {
        let shown = screen.invite.take().is_some();
        (shown, shown)
    });
    if shown {
        return;
    }
    match phone.invite().await {
        Ok(link) => board.with(phone.name(), |screen| {
            screen.invite = Some(link.to_string());
            (true, ())
        }),
        Err(error) => tracing::info!(%error, "a phone got no link for another one"),
    }
}

impl Notified {
    /// `false`: the form is none of ours.
    pub(super) async fn run(&self, board: &Board, phone: &Phone) -> bool {
        let found = board.with(phone.name(), |screen| {
            let all = screen.notices.iter();
            let found = all.clone().find(|one| one.id.as_str() == self.notice);
            (false, found.cloned())
        });
        // A second click: the page shows what has become of it.
        let Some(notice) = found else {
            return true;
        };
        let done = match self.act.as_str() {
            "seen" => phone.notice_seen(&notice.id).await,
            "remove" => phone.revoke(&notice.device).await,
            _ => return false,
        };
        if let Err(error) = done {
            tracing::info!(%error, "a notice could not be settled");
        }
        true
    }
}
