//! What the forms of a card do.

use super::board::{Answering, Board};
use super::screen::{Notice, Sent};
use serde::Deserialize;
use simulator::{Decision, Phone};

/// A filled-in card.
#[derive(Deserialize)]
pub(super) struct Answer {
    /// The push.
    pub(super) push: String,
    /// `approve`, `deny` or `fraud`.
    decision: String,
    /// What was typed.
    #[serde(default)]
    code: String,
}

/// What a card's buttons mean.
enum Meant {
    Approve,
    Deny { reason: Option<String> },
}

impl Answer {
    fn meant(&self) -> Option<Meant> {
        match self.decision.as_str() {
            "approve" => Some(Meant::Approve),
            "deny" => Some(Meant::Deny { reason: None }),
            "fraud" => Some(Meant::Deny {
                reason: Some("fraud_reported".to_owned()),
            }),
            _ => None,
        }
    }

    /// People write codes in groups.
    fn digits(&self) -> Option<String> {
        let typed: String = self.code.chars().filter(|c| !c.is_whitespace()).collect();
        let six = typed.len() == 6 && typed.bytes().all(|b| b.is_ascii_digit());
        six.then_some(typed)
    }

    /// Signs and sends what was meant. `false`: the form is none of ours.
    pub(super) async fn send(&self, board: &Board, phone: &Phone) -> bool {
        let (Ok(push), Some(meant)) = (self.push.parse(), self.meant()) else {
            return false;
        };
        // Nothing waits under this name, or a second click: the page shows what has become of it.
        let Some(card) = board.begin(phone.name(), &push) else {
            return true;
        };
        let decision = match (meant, self.digits()) {
            (Meant::Deny { reason }, _) => Decision::Deny { reason },
            (Meant::Approve, _) if !card.prompt.match_required => Decision::Approve { code: None },
            (Meant::Approve, Some(digits)) => Decision::Approve { code: Some(digits) },
            (Meant::Approve, None) => {
                card.notice(Notice::NoCode);
                return true;
            }
        };
        // Finished also when the browser goes away in between.
        let (phone, board) = (phone.clone(), board.clone());
        let sending = tokio::spawn(async move {
            card.answer(&phone, decision).await;
            // What else shows this push shall not wait for the next look.
            board.look_again().await;
        });
        // A panic was already shown, and the card is given back.
        sending.await.ok();
        true
    }
}

impl Answering {
    fn notice(&self, notice: Notice) {
        self.board.with(&self.name, |screen| {
            if let Some(card) = screen.card(&self.prompt.push) {
                card.notice = Some(notice);
                card.tries += u32::from(notice == Notice::WrongCode);
            }
            (true, ())
        });
    }

    /// The proof of this decision: the one that may have arrived already, where there is one.
    fn proof(&self, phone: &Phone, decision: &Decision) -> Option<String> {
        self.board.with(&self.name, |screen| {
            let Some(card) = screen.card(&self.prompt.push) else {
                return (false, None);
            };
            if card
                .sent
                .as_ref()
                .is_none_or(|sent| sent.decision != *decision)
            {
                card.sent = phone.proof(&self.prompt, decision).ok().map(|proof| Sent {
                    decision: decision.clone(),
                    proof,
                });
            }
            (false, card.sent.as_ref().map(|sent| sent.proof.clone()))
        })
    }

    async fn answer(self, phone: &Phone, decision: Decision) {
        let Some(proof) = self.proof(phone, &decision) else {
            self.notice(Notice::Refused);
            return;
        };
        let Ok(answered) = phone.send_proof(&self.prompt.push, &proof).await else {
            self.notice(Notice::Unsent);
            return;
        };
        let push = &self.prompt.push;
        let outcome = self.board.with(&self.name, |screen| {
            let outcome = screen.card(push).map(|card| {
                // A refused proof is spent.
                card.sent.take_if(|_| (400..429).contains(&answered.status));
                card.outcome(&answered, &decision)
            });
            if let Some(Ok(ending)) = outcome {
                screen.end(push, ending);
            }
            (matches!(outcome, Some(Ok(_))), outcome)
        });
        if let Some(Err(notice)) = outcome {
            self.notice(notice);
        }
    }
}
