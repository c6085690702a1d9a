//! Probes.

use crate::app::App;
use crate::problem::{Code, Problem};
use axum::extract::State;

/// The process runs.
#[utoipa::path(get, path = "/livez", tag = "health", responses((status = 200, body = String)))]
pub(crate) async fn live() -> &'static str {
    "ok\n"
}

/// The database answers and the broker takes messages. A broker that is away does not stop pushes from being taken: they wait in the
/// outbox.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, body = String), (status = 503, body = Problem)))]
pub(crate) async fn ready(State(app): State<App>) -> Result<&'static str, Problem> {
    let database = app.store.next_deadline().await.is_ok();
    let broker = app.broker.healthy().await;
    if app.stop.is_cancelled() || !database {
        return Err(Problem::new(Code::Unavailable)
            .with("database", database)
            .with("broker", broker)
            .with("stopping", app.stop.is_cancelled()));
    }
    Ok(if broker {
        "ok\n"
    } else {
        "ok, without broker\n"
    })
}
