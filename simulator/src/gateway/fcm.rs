//! `POST /v1/projects/<project>/messages:send` as FCM serves it, and the OAuth2 endpoint on the same port.

use super::exchange::{Connection, NoBody, Reply, finish, read};
use super::journal::{Provider, Receipt, push_named_in};
use super::reasons::FcmCode;
use super::script::{Step, Verdict};
use super::{State, fcm_message, fcm_reply, oauth};
use crate::random;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::Value;
use shared::secret::Secret;

pub(super) async fn serve(
    connection: &Connection,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = read(body).await;
    let state = &connection.state;
    if parts.method == Method::POST && parts.uri.path() == "/token" {
        return oauth::answer(state, body.as_ref()).into_response();
    }
    let mut receipt = Receipt::new(Provider::Fcm, State::now());
    match inspect(state, &parts, body.as_ref(), &mut receipt) {
        Ok(validate_only) => {
            let step = if validate_only {
                // Checked and not sent: no phone gets it, whatever the token's script.
                Step::answer(Verdict::Raw {
                    status: 200,
                    body: String::new(),
                })
            } else {
                state.judge(Provider::Fcm, receipt.token.expose())
            };
            let project = &state.account.project_id;
            let id = if validate_only {
                "fake_message_id".to_owned()
            } else {
                format!("0:{}%{}", receipt.at_ms * 1000, random::hex::<8>())
            };
            let name = format!("projects/{project}/messages/{id}");
            let reply = if validate_only {
                fcm_reply::verdict(&Verdict::Accept, &name)
            } else {
                fcm_reply::verdict(&step.verdict, &name)
            };
            if reply.status == 200 {
                receipt.apns_id = Some(id);
            }
            finish(connection, receipt, &step, reply).await
        }
        Err(reply) => {
            let step = Step::answer(Verdict::Refused);
            finish(connection, receipt, &step, reply).await
        }
    }
}

/// Checks everything, and notes in the receipt what it learns on the way. Says whether the message is only to be checked.
fn inspect(
    state: &State,
    parts: &http::request::Parts,
    body: Result<&Bytes, &NoBody>,
    receipt: &mut Receipt,
) -> Result<bool, Reply> {
    let project = parts
        .uri
        .path()
        .strip_prefix("/v1/projects/")
        .and_then(|rest| rest.strip_suffix("/messages:send"))
        .filter(|_| parts.method == Method::POST);
    let Some(project) = project else {
        // Google's front end knows no such page and says so in HTML.
        let page = "<!DOCTYPE html><html lang=en><title>Error 404 (Not Found)!!1</title></html>";
        return Err(Reply::raw(404, page.to_owned()));
    };
    let authorized = parts
        .headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .is_some_and(|(scheme, token)| {
            scheme.eq_ignore_ascii_case("bearer") && state.access.is_valid(token, receipt.at_ms)
        });
    if !authorized {
        return Err(fcm_reply::error(FcmCode::Unauthenticated));
    }
    if project != state.account.project_id {
        return Err(fcm_reply::error(FcmCode::NotFound));
    }
    let body = body.map_err(|_| fcm_reply::error(FcmCode::TooBig))?;
    receipt.body = Secret::new(String::from_utf8_lossy(body));
    let not_json = |_| {
        fcm_reply::invalid(&fcm_message::Invalid {
            code: FcmCode::InvalidArgument,
            field: Some(String::new()),
            description: "Invalid JSON payload received. Unexpected token.".to_owned(),
            by_fcm: false,
        })
    };
    let value: Value = serde_json::from_slice(body).map_err(not_json)?;
    if let Some(token) = value["message"]["token"].as_str() {
        receipt.token = Secret::new(token);
    }
    let message = fcm_message::check(&value).map_err(|fault| fcm_reply::invalid(&fault))?;
    receipt.push_id = push_named_in(&value);
    receipt.collapse_id = message.collapse_key;
    receipt.priority = message.priority;
    receipt.expiration = message.ttl_s;
    receipt.token = Secret::new(message.token);
    Ok(message.validate_only)
}
