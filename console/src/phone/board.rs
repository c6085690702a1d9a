//! The phones of a fleet and what each of them shows. It looks at most once a second, and only when somebody looks at the page.

use super::screen::{Link, Screen};
use futures_util::future::join_all;
use shared::clock::{Clock as _, SystemClock};
use shared::id::PushId;
use simulator::phone::Error;
use simulator::{Behaviour, Fleet, Phone};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How many phones have room on the page.
const PHONES: usize = 4;
/// How old what is shown may be.
const FRESH: Duration = Duration::from_millis(900);
/// How long one phone's calls may hold up the others.
const PATIENCE: Duration = Duration::from_secs(5);

type Screens = BTreeMap<String, Screen>;

struct Inner {
    fleet: Fleet,
    screens: Mutex<Screens>,
    version: watch::Sender<u64>,
    /// When all phones were last looked at; held during a look, so that there is one at a time.
    looked: tokio::sync::Mutex<Option<Instant>>,
}

/// All phones. Cheap to clone.
#[derive(Clone)]
pub(super) struct Board(Arc<Inner>);

impl Board {
    pub(super) fn new(fleet: Fleet) -> Self {
        Self(Arc::new(Inner {
            fleet,
            screens: Mutex::default(),
            version: watch::Sender::new(1),
            looked: tokio::sync::Mutex::default(),
        }))
    }

    pub(super) fn fleet(&self) -> &Fleet {
        &self.0.fleet
    }

    /// Grows when something visible changes.
    pub(super) fn versions(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// The phones on the page, by name.
    pub(super) fn phones(&self) -> Vec<Phone> {
        let mut phones = self.0.fleet.phones();
        phones.sort_by_cached_key(|phone| (phone.name().to_lowercase(), phone.name().to_owned()));
        phones.truncate(PHONES);
        phones
    }

    /// The phone of this name, when it is on the page.
    pub(super) fn phone(&self, name: &str) -> Option<Phone> {
        self.phones().into_iter().find(|one| one.name() == name)
    }

    /// Uses one phone's screen. Where `use_it` says that something visible changed, everybody who watches is told.
    pub(super) fn with<T>(&self, name: &str, use_it: impl FnOnce(&mut Screen) -> (bool, T)) -> T {
        let mut screens = self.screens();
        let screen = screens.entry(name.to_owned()).or_default();
        let (changed, value) = use_it(screen);
        if changed {
            screen.version += 1;
            self.0.version.send_modify(|version| *version += 1);
        }
        value
    }

    fn screens(&self) -> std::sync::MutexGuard<'_, Screens> {
        let screens = &self.0.screens;
        screens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows all screens.
    pub(super) fn show<T>(&self, show: impl FnOnce(&[Phone], &Screens) -> T) -> T {
        let phones = self.phones();
        let mut screens = self.screens();
        for phone in &phones {
            screens.entry(phone.name().to_owned()).or_default();
        }
        show(&phones, &screens)
    }

    /// Looks at every phone's prompts, unless somebody just has.
    pub(super) async fn look(&self) {
        self.look_if(|at| at.elapsed() >= FRESH).await;
    }

    /// Looks at every phone's prompts as they are from now on.
    pub(super) async fn look_again(&self) {
        let now = Instant::now();
        self.look_if(|at| at <= now).await;
    }

    async fn look_if(&self, stale: impl FnOnce(Instant) -> bool) {
        let mut looked = self.0.looked.lock().await;
        if !looked.is_none_or(stale) {
            return;
        }
        let began = Instant::now();
        let phones = self.phones();
        join_all(phones.iter().map(|phone| self.look_at(phone))).await;
        *looked = Some(began);
    }

    async fn look_at(&self, phone: &Phone) {
        if self.with(phone.name(), |screen| (false, screen.airplane)) {
            return;
        }
        let link = match tokio::time::timeout(PATIENCE, self.fetch(phone)).await {
            Ok(Ok(())) => Link::Online,
            Ok(Err(Error::NotEnrolled | Error::Refused { .. })) => Link::Unknown,
            Ok(Err(Error::NotGenuine(_))) => Link::Forged,
            Ok(Err(
                Error::Base(_)
                | Error::Unreachable(_)
                | Error::Unreadable(_)
                | Error::Link
                | Error::ServerKey
                | Error::SavedKey,
            ))
            | Err(_) => Link::Offline,
        };
        self.with(phone.name(), |screen| {
            let before = std::mem::replace(&mut screen.link, link);
            (before != link, ())
        });
    }

    async fn fetch(&self, phone: &Phone) -> Result<(), Error> {
        let (waiting, notices) = (phone.pending().await?, phone.notices().await?);
        let name = phone.name();
        let (vanished, opened) = self.with(name, |screen| {
            let (changed, vanished) = screen.take(waiting);
            let told = screen.told(notices);
            (changed || told, (vanished, screen.opened()))
        });
        for push in vanished {
            let state = match phone.fetch(&push).await {
                Ok(prompt) => Some(prompt.state),
                Err(Error::Refused { status, .. }) if status.as_u16() == 404 => None,
                Err(error) => return Err(error),
            };
            let now = SystemClock.now();
            self.with(name, |screen| (true, screen.vanished(&push, state, now)));
        }
        for push in opened {
            // One that cannot be fetched any more stays as it was.
            if let Ok(prompt) = phone.fetch(&push).await {
                self.with(name, |screen| {
                    (screen.process_ended(&push, prompt.state), ())
                });
            }
        }
        Ok(())
    }

    /// Takes a phone off the air, or back.
    pub(super) fn airplane(&self, name: &str, on: bool) {
        let behaviour = if on {
            Behaviour::Ignore
        } else {
            Behaviour::Manual
        };
        self.0.fleet.set_behaviour(name, behaviour);
        self.with(name, |screen| {
            let before = std::mem::replace(&mut screen.airplane, on);
            (before != on, ())
        });
    }

    /// Takes a card for answering; `None` when there is none, or somebody already does.
    pub(super) fn begin(&self, name: &str, push: &PushId) -> Option<Answering> {
        let taken = self.with(name, |screen| {
            let free = screen.card(push).filter(|card| !card.answering);
            let taken = free.map(|card| {
                card.answering = true;
                card.prompt.clone()
            });
            (false, taken)
        });
        taken.map(|prompt| Answering {
            board: self.clone(),
            name: name.to_owned(),
            prompt,
        })
    }
}

/// A card that is being answered; given back in any case.
pub(super) struct Answering {
    pub(super) board: Board,
    pub(super) name: String,
    pub(super) prompt: simulator::Prompt,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.board.with(&self.name, |screen| {
            if let Some(card) = screen.card(&self.prompt.push) {
                card.answering = false;
            }
            (false, ())
        });
    }
}
