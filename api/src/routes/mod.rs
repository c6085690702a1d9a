//! One file per resource or endpoint.

mod approvals;
mod audit;
pub(crate) mod batches;
mod definitions;
mod device;
pub(crate) mod docs;
mod enrolment_codes;
mod enrolments;
mod fraud_locks;
mod health;
mod instances;
mod keys;
mod policies;
mod process;
mod pushes;
mod server_key;
mod stores;
mod user_devices;
mod users;

use crate::app::App;
use crate::problem::{Code, Problem};
use std::collections::BTreeMap;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The query of a list.
pub(crate) type Query = axum::extract::Query<BTreeMap<String, String>>;

const MAX_LIMIT: i64 = 200;
const LIMIT: i64 = 50;

/// `cursor` and `limit` of a list; any other parameter must be in `known`.
pub(crate) fn page(query: &Query, known: &[&str]) -> Result<(String, i64), Problem> {
    for (name, value) in &query.0 {
        if value.chars().any(char::is_control) {
            return Err(bad_parameter(&format!("{name} holds a control character")));
        }
        if !matches!(name.as_str(), "cursor" | "limit") && !known.contains(&name.as_str()) {
            return Err(bad_parameter(&format!("there is no parameter {name}")));
        }
    }
    let limit = match query.0.get("limit") {
        None => LIMIT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=MAX_LIMIT).contains(n))
            .ok_or_else(|| bad_parameter(&format!("limit is a number from 1 to {MAX_LIMIT}")))?,
    };
    let cursor = query.0.get("cursor").cloned().unwrap_or_default();
    Ok((cursor, limit))
}

pub(crate) fn bad_parameter(detail: &str) -> Problem {
    Problem::new(Code::BadParameter).detail(detail)
}

/// An identifier in a path; one of another form names nothing.
pub(crate) fn id<T: std::str::FromStr>(text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| Code::NotFound.into())
}

pub(crate) fn all() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(stores::create, stores::list))
        .routes(routes!(stores::show))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::revoke))
        .routes(routes!(users::create, users::list))
        .routes(routes!(users::show, users::change))
        .routes(routes!(user_devices::register, user_devices::list))
        .routes(routes!(user_devices::show, user_devices::change))
        .routes(routes!(enrolment_codes::create, enrolment_codes::list))
        .routes(routes!(enrolment_codes::show, enrolment_codes::revoke))
        .routes(routes!(enrolments::enrol))
        .routes(routes!(
            policies::put_push,
            policies::show_push,
            policies::drop_push
        ))
        .routes(routes!(policies::list_push))
        .routes(routes!(policies::put_appkey, policies::show_appkey))
        .routes(routes!(definitions::create, definitions::list))
        .routes(routes!(pushes::create::create, pushes::list::list))
        .routes(routes!(pushes::show::show))
        .routes(routes!(pushes::cancel::cancel))
        .routes(routes!(pushes::consume::consume))
        .routes(routes!(pushes::payments::list_payments))
        .routes(routes!(pushes::payments::show_payment))
        .routes(routes!(pushes::payments::consume_payment))
        .routes(routes!(pushes::receipt::receipt))
        .routes(routes!(approvals::create::create, approvals::show::list))
        .routes(routes!(approvals::show::show))
        .routes(routes!(approvals::show::cancel))
        .routes(routes!(approvals::consume::consume))
        .routes(routes!(fraud_locks::list_locks))
        .routes(routes!(fraud_locks::lift_lock))
        .routes(routes!(pushes::events::events))
        .routes(routes!(audit::list))
        .routes(routes!(audit::head))
        .routes(routes!(batches::upload::create, batches::show::list))
        .routes(routes!(batches::show::show))
        .routes(routes!(batches::control::pause))
        .routes(routes!(batches::control::resume))
        .routes(routes!(batches::control::cancel))
        .routes(routes!(batches::report::errors))
        .routes(routes!(batches::report::results))
        .routes(routes!(process::look, process::open))
        .routes(routes!(instances::show))
        .routes(routes!(instances::progress))
        .routes(routes!(instances::complete))
        .routes(routes!(device::prompts::list))
        .routes(routes!(device::prompts::show))
        .routes(routes!(device::answer::answer))
        .routes(routes!(device::address::put))
        .routes(routes!(device::siblings::invite))
        .routes(routes!(device::siblings::siblings))
        .routes(routes!(device::siblings::revoke))
        .routes(routes!(device::notices::notices))
        .routes(routes!(device::notices::seen))
        .routes(routes!(server_key::server_key))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
}
