//! What a person does with a phone that rings.

use super::{Behaviour, Shared};
use crate::phone::{Answered, Decision, Error, Phone};
use shared::id::PushId;
use std::time::Duration;

/// How often the app tries when the API does not answer: about half a minute.
const ATTEMPTS: u32 = 20;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Nobody looks for a code longer than this.
const PATIENCE: Duration = Duration::from_mins(10);

/// Somebody who answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Person {
    approves: bool,
    after: Duration,
}

impl Person {
    pub(super) fn of(behaviour: Behaviour) -> Option<Self> {
        match behaviour {
            Behaviour::Manual | Behaviour::Ignore => None,
            Behaviour::Approve { after } => Some(Self {
                approves: true,
                after,
            }),
            Behaviour::Deny { after } => Some(Self {
                approves: false,
                after,
            }),
        }
    }

    pub(super) async fn react(self, shared: &Shared, phone: &Phone, push: &PushId) {
        tokio::time::sleep(self.after).await;
        match self.answer(shared, phone, push).await {
            Ok(Some(Answered { status, .. })) => {
                tracing::debug!(phone = phone.name(), %push, status, "a virtual phone answered");
            }
            Ok(None) => {
                tracing::warn!(phone = phone.name(), %push, "nobody told a virtual phone the match code");
            }
            Err(error) => {
                tracing::warn!(phone = phone.name(), %push, error = &error as &dyn std::error::Error, "a virtual phone could not answer");
            }
        }
    }

    async fn answer(
        self,
        shared: &Shared,
        phone: &Phone,
        push: &PushId,
    ) -> Result<Option<Answered>, Error> {
        let prompt = persist(shared, || phone.fetch(push), |_| false).await?;
        let decision = match (self.approves, prompt.match_required) {
            (false, _) => Decision::Deny { reason: None },
            (true, false) => Decision::Approve { code: None },
            (true, true) => {
                let code = tokio::time::timeout(PATIENCE, shared.codes.wait(push)).await;
                let Ok(code) = code else {
                    return Ok(None);
                };
                let code = Some(code.expose().to_owned());
                Decision::Approve { code }
            }
        };
        // One proof, however often it is sent: the second time it cannot count twice.
        let proof = phone.proof(&prompt, &decision)?;
        let busy = |answered: &Answered| answered.status == 429 || answered.status >= 500;
        persist(shared, || phone.send_proof(push, &proof), busy)
            .await
            .map(Some)
    }
}

/// Tries until something else comes than silence or "later".
async fn persist<T, F: Future<Output = Result<T, Error>>>(
    shared: &Shared,
    call: impl Fn() -> F,
    busy: impl Fn(&T) -> bool,
) -> Result<T, Error> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        let result = one(shared, &call).await;
        let again = match &result {
            Ok(value) => busy(value),
            Err(Error::Unreachable(_)) => true,
            Err(Error::Refused { status, .. }) => {
                status.is_server_error() || status.as_u16() == 429
            }
            Err(
                Error::NotEnrolled
                | Error::Base(_)
                | Error::Unreadable(_)
                | Error::Link
                | Error::ServerKey
                | Error::NotGenuine(_)
                | Error::SavedKey,
            ) => false,
        };
        if !again {
            return result;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    one(shared, &call).await
}

async fn one<T, F: Future<Output = Result<T, Error>>>(
    shared: &Shared,
    call: impl Fn() -> F,
) -> Result<T, Error> {
    // Never closed, so there is always a permit in the end.
    let _permit = shared.calls.acquire().await;
    call().await
}
