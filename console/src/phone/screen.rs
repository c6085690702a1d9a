//! What one phone shows: the prompts that wait, and how the last ones ended.

use crate::words;
use serde::Deserialize as _;
use serde_json::Value;
use shared::clock::Millis;
use shared::domain::{Context, Kind, Payment, Payments, PushState, Quorum};
use shared::id::PushId;
use simulator::{Answered, Decision, Prompt};
use std::collections::VecDeque;

/// How many ended prompts a phone goes on showing.
const PAST: usize = 3;
/// How many ended prompts are kept in mind: an answered generic push waits for the other devices, and is not shown again here.
const REMEMBERED: usize = 200;

/// Whether the phone reaches the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Link {
    /// Not tried yet.
    #[default]
    New,
    Online,
    /// The API does not know the phone.
    Unknown,
    /// A prompt came that the server has not signed; nothing of it is shown.
    Forged,
    /// No answer.
    Offline,
}

/// Why a card says something beside the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// Not sent: there were no six digits.
    NoCode,
    /// Sent and refused.
    WrongCode,
    /// Refused for another reason.
    Refused,
    /// No answer: it may have arrived.
    Unsent,
}

/// A proof that was made, kept so that a second try is the very same.
pub(super) struct Sent {
    pub(super) decision: Decision,
    pub(super) proof: String,
}

/// A prompt that waits.
pub(super) struct Card {
    pub(super) prompt: Prompt,
    pub(super) notice: Option<Notice>,
    /// How often a code was refused here.
    pub(super) tries: u32,
    pub(super) sent: Option<Sent>,
    /// An answer is under way; its outcome decides what this card becomes.
    pub(super) answering: bool,
}

/// How a prompt ended, as this phone tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Here.
    Approved,
    /// Here.
    Denied,
    /// Here.
    Reported,
    /// Here; a generic push may go on elsewhere.
    Accepted,
    /// Here, before this page knew.
    Before,
    /// Approved or denied on another device.
    Elsewhere,
    /// Its link was opened; a process goes on.
    Opened,
    /// The process said yes.
    ProcessApproved,
    /// The process said no.
    ProcessDenied,
    Expired,
    Cancelled,
    Failed,
    /// Failed after wrong codes here.
    TooManyCodes,
    Completed,
    /// The phone is not asked any more.
    Gone,
}

/// A prompt that does not wait any more.
pub(super) struct Past {
    pub(super) push: PushId,
    pub(super) title: String,
    pub(super) ending: Ending,
}

/// One phone.
#[derive(Default)]
pub(super) struct Screen {
    pub(super) airplane: bool,
    pub(super) link: Link,
    pub(super) cards: Vec<Card>,
    past: VecDeque<Past>,
    /// A link for another phone, while it is shown.
    pub(super) invite: Option<String>,
    /// What happened to the person's other phones.
    pub(super) notices: Vec<simulator::phone::Notice>,
    /// Grows when something visible changes.
    pub(super) version: u64,
}

fn text<'a>(shown: &'a Value, name: &str) -> &'a str {
    shown[name].as_str().unwrap_or_default()
}

impl Card {
    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            notice: None,
            tries: 0,
            sent: None,
            answering: false,
        }
    }

    pub(super) fn push(&self) -> &PushId {
        &self.prompt.push
    }

    pub(super) fn text(&self, name: &str) -> &str {
        text(&self.prompt.shown, name)
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.text("kind").parse().ok()
    }

    /// Label and value.
    pub(super) fn details(&self) -> Vec<(&str, &str)> {
        let lines = self.prompt.shown["details"].as_array();
        let pair = |line| (text(line, "label"), text(line, "value"));
        lines.map_or_else(Vec::new, |lines| lines.iter().map(pair).collect())
    }

    /// What is to be paid, and to whom, all of them: label and value.
    pub(super) fn payment(&self) -> Vec<(&'static str, String)> {
        let shown = &self.prompt.shown;
        let one = shown.get("payment").map(Payment::deserialize);
        let batch = shown.get("payments").map(Payments::deserialize);
        match (one, batch) {
            (Some(Ok(one)), _) => one.lines().into(),
            (_, Some(Ok(batch))) => batch.lines(),
            (_, _) => Vec::new(),
        }
    }

    /// From where the question comes: label and value.
    pub(super) fn context(&self) -> Vec<(&'static str, String)> {
        let context = self.prompt.shown.get("context");
        let context = context.and_then(|sent| Context::deserialize(sent).ok());
        let lines = context.iter().flat_map(Context::lines);
        lines
            .map(|(label, value)| (label, value.to_owned()))
            .collect()
    }

    /// Where several people are asked: that this is one of them.
    pub(super) fn quorum(&self) -> Option<String> {
        let sent = self.prompt.shown.get("approval")?;
        let quorum = Quorum::deserialize(sent).ok()?;
        let Quorum { required, of } = quorum;
        Some(format!(
            "You are one of {of} who are asked. {required} must approve."
        ))
    }

    /// The link of a process push. Nothing else than a page is opened.
    pub(super) fn link(&self) -> Option<&str> {
        let link = self.text("redirect_url");
        (link.starts_with("http://") || link.starts_with("https://")).then_some(link)
    }

    pub(super) fn left(&self, now: Millis) -> Millis {
        words::millis(&self.prompt.expires_at).map_or(0, |at| (at - now).max(0))
    }

    /// What a prompt that nobody answered here has come to.
    fn vanished(&self, state: PushState, now: Millis) -> Ending {
        let process = self.kind() == Some(Kind::Process);
        match state {
            PushState::Approved | PushState::Denied => Ending::Elsewhere,
            PushState::Expired => Ending::Expired,
            PushState::Cancelled => Ending::Cancelled,
            PushState::Failed if self.tries > 0 => Ending::TooManyCodes,
            PushState::Failed => Ending::Failed,
            PushState::Completed => Ending::Completed,
            PushState::Opened if process => Ending::Opened,
            PushState::Accepted | PushState::Pending | PushState::Opened => {
                // The clock is ahead of the sweep that writes it down.
                if self.left(now) == 0 {
                    Ending::Expired
                } else {
                    Ending::Gone
                }
            }
        }
    }

    /// What the API's word about an answer means: an end, or why the card stays.
    pub(super) fn outcome(
        &self,
        answered: &Answered,
        decision: &Decision,
    ) -> Result<Ending, Notice> {
        let state: Option<PushState> = answered.body["state"].as_str().and_then(PushState::parse);
        let code = text(&answered.body, "code");
        match (answered.status, code) {
            (200, _) => Ok(match decision {
                Decision::Approve { .. } if self.kind() == Some(Kind::Generic) => Ending::Accepted,
                Decision::Approve { .. } => Ending::Approved,
                Decision::Deny { reason: Some(_) } => Ending::Reported,
                Decision::Deny { reason: None } => Ending::Denied,
            }),
            (409, "push_expired") => Ok(Ending::Expired),
            (409, _) => Ok(match state {
                Some(PushState::Accepted | PushState::Pending) => Ending::Before,
                Some(state) => self.vanished(state, 0),
                None => Ending::Gone,
            }),
            (404, _) => Ok(Ending::Gone),
            (422, "proof_refused") => Err(match decision {
                Decision::Approve { code: Some(_) } => Notice::WrongCode,
                Decision::Approve { code: None } | Decision::Deny { .. } => Notice::Refused,
            }),
            (429 | 500.., _) => Err(Notice::Unsent),
            (_, _) => Err(Notice::Refused),
        }
    }
}

impl Screen {
    /// Takes what it is told now. Says whether that is news.
    pub(super) fn told(&mut self, notices: Vec<simulator::phone::Notice>) -> bool {
        let news = self.notices != notices;
        self.notices = notices;
        news
    }

    /// The ended prompts to show, newest first.
    pub(super) fn past(&self) -> impl Iterator<Item = &Past> {
        self.past.iter().take(PAST)
    }

    pub(super) fn card(&mut self, push: &PushId) -> Option<&mut Card> {
        self.cards.iter_mut().find(|card| card.push() == push)
    }

    /// A card becomes past.
    pub(super) fn end(&mut self, push: &PushId, ending: Ending) {
        let Some(at) = self.cards.iter().position(|card| card.push() == push) else {
            return;
        };
        let card = self.cards.remove(at);
        self.past.push_front(Past {
            push: push.clone(),
            title: card.text("title").to_owned(),
            ending,
        });
        self.past.truncate(REMEMBERED);
    }

    /// Takes what waits now. Says which cards wait no longer: how they ended is to be found out.
    pub(super) fn take(&mut self, waiting: Vec<Prompt>) -> (bool, Vec<PushId>) {
        let vanished = self
            .cards
            .iter()
            .filter(|card| !card.answering)
            .filter(|card| !waiting.iter().any(|one| one.push == card.prompt.push))
            .map(|card| card.push().clone())
            .collect();
        let mut changed = false;
        for prompt in waiting {
            let known = self.card(&prompt.push).is_some()
                || self.past.iter().any(|one| one.push == prompt.push);
            if !known {
                self.cards.push(Card::new(prompt));
                changed = true;
            }
        }
        (changed, vanished)
    }

    /// How a vanished prompt stands.
    pub(super) fn vanished(&mut self, push: &PushId, state: Option<PushState>, now: Millis) {
        let Some(card) = self.card(push).filter(|card| !card.answering) else {
            return;
        };
        let ending = state.map_or(Ending::Gone, |state| card.vanished(state, now));
        self.end(push, ending);
    }

    /// Opened processes that are still shown: they may end.
    pub(super) fn opened(&self) -> Vec<PushId> {
        self.past()
            .filter(|one| one.ending == Ending::Opened)
            .map(|one| one.push.clone())
            .collect()
    }

    /// How an opened process stands. Says whether that is news.
    pub(super) fn process_ended(&mut self, push: &PushId, state: PushState) -> bool {
        let Some(one) = self.past.iter_mut().find(|one| one.push == *push) else {
            return false;
        };
        let before = one.ending;
        one.ending = match state {
            PushState::Approved | PushState::Completed => Ending::ProcessApproved,
            PushState::Denied => Ending::ProcessDenied,
            PushState::Expired => Ending::Expired,
            PushState::Cancelled => Ending::Cancelled,
            PushState::Failed => Ending::Failed,
            PushState::Accepted | PushState::Pending | PushState::Opened => Ending::Opened,
        };
        one.ending != before
    }
}
