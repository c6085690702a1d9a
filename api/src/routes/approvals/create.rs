//! Ask several people something.

use super::request::{ApprovalRequest, Asked};
use crate::app::App;
use crate::auth::Caller;
use crate::body::Sent;
use crate::problem::{Code, Problem};
use crate::routes::pushes::create::{
    Part, Running, Taking, answer, count, key_of, replayed, traceparent_of,
};
use axum::Json;
use axum::extract::{Path, State};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use shared::clock::{Millis, rfc3339};
use shared::crypto::sha256_text;
use shared::domain::Quorum;
use shared::id::{ApprovalId, PushId, StoreId, UserId};
use shared::store::{ApprovalRow, NewApproval, NewPush, TakenApproval};
use utoipa::ToSchema;

/// An approval that was taken.
#[derive(Serialize, ToSchema)]
pub(crate) struct ApprovalAccepted {
    id: String,
    store: String,
    /// Always `pending`: what it was when this request was first answered.
    state: String,
    /// How many must approve.
    required: i64,
    created_at: String,
    expires_at: String,
    /// One for each approver, in the order of the request.
    members: Vec<AcceptedMember>,
}

/// The push to one approver.
#[derive(Serialize, ToSchema)]
pub(crate) struct AcceptedMember {
    push: String,
    user: String,
    /// For this approver alone: show it on their own initiating channel, and nowhere else.
    #[serde(skip_serializing_if = "Option::is_none")]
    match_code: Option<String>,
}

type Reply = (StatusCode, HeaderMap, Json<ApprovalAccepted>);

fn member(app: &App, push: &PushId, user: &UserId, nonce: Option<&str>) -> AcceptedMember {
    let code = nonce.map(|nonce| app.secret.match_code(push, nonce));
    AcceptedMember {
        push: push.to_string(),
        user: user.to_string(),
        match_code: code.map(|code| code.expose().to_owned()),
    }
}

/// The answer for an approval: `times` are those of its making and its end.
fn reply(
    mut headers: HeaderMap,
    (id, store): (&ApprovalId, &StoreId),
    required: i64,
    times: [Millis; 2],
    members: impl Iterator<Item = AcceptedMember>,
) -> Reply {
    let [created_at, expires_at] = times.map(rfc3339);
    let accepted = ApprovalAccepted {
        id: id.to_string(),
        store: store.to_string(),
        state: "pending".to_owned(),
        required,
        created_at,
        expires_at,
        members: members.collect(),
    };
    let place = format!("/v1/stores/{}/approvals/{}", accepted.store, accepted.id);
    if let Ok(place) = HeaderValue::from_str(&place) {
        headers.insert(header::LOCATION, place);
    }
    (StatusCode::ACCEPTED, headers, Json(accepted))
}

/// The first answer once more.
async fn replay(app: &App, row: &ApprovalRow) -> Result<Reply, Problem> {
    count("duplicate");
    let pushes = app.store.members(&row.id).await?;
    let members = pushes.iter().map(|push| {
        let nonce = push.match_required.then_some(push.nonce.as_str());
        member(app, &push.id, &push.user, nonce)
    });
    let (of, times) = ((&row.id, &row.store), [row.created_at, row.expires_at]);
    Ok(reply(replayed(), of, row.required, times, members))
}

/// Ask several people something, of whom some must approve. Nobody is asked unless all can be: 202 says that all questions are durable and on their way.
#[utoipa::path(post, path = "/v1/stores/{store}/approvals", tag = "approvals", operation_id = "create_approval",
    params(("store" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body asks once")),
    request_body = ApprovalRequest,
    responses((status = 202, body = ApprovalAccepted), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem),
        (status = 503, body = Problem)))]
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(store): Path<String>,
    headers: HeaderMap,
    Sent(sent): Sent,
) -> Result<Reply, Problem> {
    let store = caller.may(&app, &store, "pushes:write").await?;
    let key = key_of(&headers)?;
    let _running = key
        .as_ref()
        .map(|key| Running::begin(&app, &store, &format!("approval {key}")))
        .transpose()?;
    let hash = sha256_text(sent.to_string().as_bytes());
    if let Some(key) = &key
        && let Some((known, row)) = app.store.approval_of_key(&store, key).await?
    {
        // What has changed since does not change the answer.
        return if known == hash {
            replay(&app, &row).await
        } else {
            Err(Code::IdempotencyReused.into())
        };
    }
    let asked = Asked::read(&app, &store, sent).await?;
    let (now, id) = (app.clock.now(), ApprovalId::fresh(app.clock.now()));
    let part = Part {
        approval: id.clone(),
        quorum: Quorum {
            required: asked.required,
            of: u32::try_from(asked.approvers.len()).unwrap_or(u32::MAX),
        },
    };
    // In their order, which is that in which they are read again.
    let mut ids: Vec<_> = asked.approvers.iter().map(|_| PushId::fresh(now)).collect();
    ids.sort();
    let mut members: Vec<NewPush> = Vec::with_capacity(ids.len());
    let (mut reply_to, mut correlation_id) = (None, None);
    for (n, (user, push)) in asked.approvers.iter().zip(ids).enumerate() {
        let taking = Taking {
            app: &app,
            caller: &caller,
            store: &store,
            headers: &headers,
            part: Some(&part),
        };
        let mut member = taking
            .push(push, asked.of(user)?, now)
            .await
            .map_err(|problem| problem.with("approver", n))?;
        // The verdict goes there, and not the answer of each.
        reply_to = member.reply_to.take();
        correlation_id.clone_from(&member.correlation_id);
        members.push(member);
    }
    let Some(first) = members.first() else {
        return Err(Code::Internal.into());
    };
    let new = NewApproval {
        id,
        store,
        rp: first.content.relying_party.clone(),
        required: i64::from(asked.required),
        on_denial: asked.on_denial,
        requested_by: asked.requested_by.clone(),
        idempotency: key.map(|key| (key, hash)),
        reply_to,
        correlation_id,
        traceparent: traceparent_of(&headers),
        key: caller.key().clone(),
        created_at: now,
        expires_at: first.expires_at,
        members,
    };
    match caller.store(&app).take_approval(&new, now).await? {
        TakenApproval::New => Ok(accepted(&app, &new, &asked)),
        TakenApproval::Replayed(row) => replay(&app, &row).await,
        TakenApproval::KeyReused => Err(Code::IdempotencyReused.into()),
        TakenApproval::Refused(n, taken) => {
            let refused = new.members.get(n).map(|push| answer(&app, push, taken));
            match refused {
                Some(Err(problem)) => Err(problem.with("approver", n)),
                Some(Ok(_)) | None => Err(Code::Internal.into()),
            }
        }
    }
}

fn accepted(app: &App, new: &NewApproval, asked: &Asked) -> Reply {
    let members = new
        .members
        .iter()
        .zip(&asked.approvers)
        .map(|(push, user)| {
            count("accepted");
            let nonce = push.match_required.then_some(push.nonce.as_str());
            member(app, &push.id, &user.id, nonce)
        });
    let (of, times) = ((&new.id, &new.store), [new.created_at, new.expires_at]);
    reply(HeaderMap::new(), of, new.required, times, members)
}
