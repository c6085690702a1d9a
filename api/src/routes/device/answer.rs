//! A device answers.

use super::prompts::shown;
use crate::app::App;
use crate::body::read;
use crate::device_auth::DeviceCall;
use crate::problem::{Code, Problem};
use crate::routes::id;
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use shared::audit::Act;
use shared::crypto::{Expected, Proof, ProofFault, content_hash, sha256_text};
use shared::domain::Kind;
use shared::id::PushId;
use shared::store::{Answer, Answered, Device};
use utoipa::ToSchema;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerRequest {
    /// The proof: a JWS.
    #[schema(min_length = 1, max_length = 4096)]
    proof: String,
}

/// What has become of the push.
#[derive(Serialize, ToSchema)]
pub(crate) struct AnswerView {
    push: String,
    state: String,
    reason: String,
}

/// Does what the person did reach what the relying party asks for?
fn verified(least: &str, asserted: &str) -> bool {
    let rank = |word: &str| match word {
        "biometric" => 2,
        "device" => 1,
        _ => 0,
    };
    rank(asserted) >= rank(least)
}

/// An answer that does not count: the caller learns that it does not, the operator why.
struct Refused<'a> {
    app: &'a App,
    device: &'a Device,
    push: &'a PushId,
}

impl Refused<'_> {
    async fn noted(&self, fault: &str) -> Result<(), Problem> {
        let Device { id, store, .. } = self.device;
        let now = self.app.clock.now();
        let store_port = &self.app.store;
        let noted = store_port.refused(Act::ProofRefused, store, self.push, Some(id), fault, now);
        Ok(noted.await?)
    }
}

/// Answer a push. The first valid answer decides; the same proof again gets the same answer.
#[utoipa::path(post, path = "/v1/device/pushes/{push}/answer", tag = "device", params(("push" = String, Path)), request_body = AnswerRequest,
    responses((status = 200, body = AnswerView), (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(crate) async fn answer(
    State(app): State<App>,
    Path(push): Path<String>,
    call: DeviceCall,
) -> Result<Json<AnswerView>, Problem> {
    let push: PushId = id(&push)?;
    let sent = read::<AnswerRequest>(&call.body)?;
    let device = &call.device;
    let refused = Refused {
        app: &app,
        device,
        push: &push,
    };
    let Some(prompt) = app.store.prompt(device, &push).await? else {
        // A push of this store, if any: of another one the log says nothing.
        refused.noted("foreign").await?;
        return Err(Code::NotFound.into());
    };
    let asked = &prompt.push;
    let now = app.clock.now();
    let code = asked
        .match_required
        .then(|| app.secret.match_code(&asked.id, &asked.nonce));
    let expected = Expected {
        device: &device.id,
        store: &asked.store,
        push: &asked.id,
        nonce: &asked.nonce,
        kind: asked.kind,
        content_hash: &content_hash(&shown(&app, asked)),
        code: code.as_ref().map(shared::secret::Secret::expose),
    };
    let proof = match Proof::check(&sent.proof, &device.key, &expected) {
        Ok(proof) => proof,
        Err(fault) => {
            tracing::warn!(push = %push, device = %device.id, %fault, "a proof was refused");
            metrics::counter!("countersign_signature_failures_total", "kind" => fault.to_string())
                .increment(1);
            let counted =
                fault == ProofFault::Code && app.store.wrong_code(&push, &device.id, now).await?;
            if !counted {
                refused.noted(&fault.to_string()).await?;
            }
            return Err(Code::ProofRefused.into());
        }
    };
    let policy = app.store.appkey_policy(&asked.store, &asked.rp).await?;
    // A process push is accepted by opening its link; only its denial is signed.
    let opens_link = asked.kind == Kind::Process && proof.approves();
    let least = if asked
        .profile
        .wants_verification(asked.kind, asked.match_required)
        && policy.user_verification == "none"
    {
        "device"
    } else {
        &policy.user_verification
    };
    if opens_link || (proof.approves() && !verified(least, &proof.uv)) {
        let fault = if opens_link {
            "link"
        } else {
            "user_verification"
        };
        refused.noted(fault).await?;
        return Err(Code::ProofRefused.into());
    }
    let reason = if proof.approves() {
        "user_approved"
    } else {
        proof.reason.as_deref().unwrap_or("user_declined")
    };
    let answer = Answer {
        push: &push,
        kind: asked.kind,
        device: &device.id,
        approves: proof.approves(),
        reason,
        verified: proof.uv != "none",
        proof_hash: &sha256_text(sent.proof.as_bytes()),
        proof: &sent.proof,
        key: &device.key,
    };
    let answered = app.store.answer(&answer, now).await?;
    told(answered, &refused).await
}

/// What the device is told of it.
async fn told(answered: Answered, refused: &Refused<'_>) -> Result<Json<AnswerView>, Problem> {
    match answered {
        Answered::Counted { state, reason } => Ok(Json(AnswerView {
            push: refused.push.to_string(),
            state: state.to_string(),
            reason,
        })),
        Answered::Ended { state, reason } if !state.is_terminal() => {
            refused.noted("state").await?;
            Err(Problem::new(Code::WrongState)
                .with("state", state.as_str())
                .with("reason", reason))
        }
        Answered::Ended { state, reason } => {
            metrics::counter!("countersign_late_answers_total").increment(1);
            refused.noted("ended").await?;
            Err(Problem::new(Code::PushEnded)
                .with("state", state.as_str())
                .with("reason", reason))
        }
        Answered::TooLate => {
            metrics::counter!("countersign_late_answers_total").increment(1);
            refused.noted("expired").await?;
            Err(Problem::new(Code::PushExpired).with("state", "expired"))
        }
    }
}
