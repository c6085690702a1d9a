//! The pushes of one store: the newest, and the life of each. Nothing here changes anything.

mod list;
mod timeline;

use crate::assets::{ICON, SCRIPT, STYLE};
use crate::guard::guard;
use crate::html::Shell;
use crate::live::{self, Seat, Seats};
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use list::List;
use maud::{Markup, html};
use shared::id::{PushId, StoreId, UserId};
use shared::store::{Error, Store};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use timeline::Timeline;
use tokio_util::sync::CancellationToken;

/// How often the database is asked while somebody watches.
const LOOK: Duration = Duration::from_secs(1);
/// How many users' names are remembered; they never change.
const NAMES: usize = 10_000;

/// What the pages read from.
#[derive(Clone)]
struct Desk {
    store: Store,
    tenant: StoreId,
    names: Arc<Mutex<HashMap<UserId, String>>>,
    seats: Seats,
    stop: CancellationToken,
}

/// The pages `/` and `/p/{push}`: what `tenant` asks, and what became of it. Its streams end at `stop`.
///
/// While a page is open, the database is asked once a second; without one nothing runs.
pub fn console_router(store: Store, tenant: StoreId, stop: CancellationToken) -> Router {
    let desk = Desk {
        store,
        tenant,
        names: Arc::default(),
        seats: Seats::default(),
        stop,
    };
    Router::new()
        .route("/", get(newest))
        .route("/console/events", get(newest_events))
        .route("/p/{push}", get(one))
        .route("/p/{push}/events", get(one_events))
        .route("/console/app.js", get(async || SCRIPT))
        .route("/console/app.css", get(async || STYLE))
        .route("/console/icon.svg", get(async || ICON))
        .route_layer(middleware::from_fn(guard))
        .with_state(desk)
}

impl Desk {
    /// What the caller calls a user.
    async fn name(&self, user: &UserId) -> Result<String, Error> {
        if let Some(name) = self.names().get(user) {
            return Ok(name.clone());
        }
        let found = self.store.user(&self.tenant, user).await?;
        let name = found.map_or_else(|| user.to_string(), |found| found.external_id);
        let mut names = self.names();
        if names.len() < NAMES {
            names.insert(user.clone(), name.clone());
        }
        Ok(name)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<UserId, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a page shows, read at once. Two of the same hash look the same, ages aside.
enum Seen {
    List(List),
    Timeline(Box<Timeline>),
    Nothing,
}

/// Which page.
#[derive(Clone)]
enum Place {
    Newest,
    One(String),
}

impl Seen {
    async fn look(desk: &Desk, place: &Place) -> Result<Self, Error> {
        match place {
            Place::Newest => List::read(desk).await.map(Self::List),
            Place::One(push) => {
                let Ok(push) = push.parse::<PushId>() else {
                    return Ok(Self::Nothing);
                };
                let found = Timeline::read(desk, &push).await?;
                Ok(found.map_or(Self::Nothing, |found| Self::Timeline(Box::new(found))))
            }
        }
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::List(list) => list.state().hash(&mut hasher),
            Self::Timeline(timeline) => timeline.state().hash(&mut hasher),
            Self::Nothing => {}
        }
        hasher.finish()
    }
}

async fn newest(State(desk): State<Desk>) -> Response {
    page(&desk, &Place::Newest).await
}

async fn one(State(desk): State<Desk>, Path(push): Path<String>) -> Response {
    page(&desk, &Place::One(push)).await
}

async fn newest_events(State(desk): State<Desk>) -> Response {
    events(desk, Place::Newest)
}

async fn one_events(State(desk): State<Desk>, Path(push): Path<String>) -> Response {
    events(desk, Place::One(push))
}

async fn page(desk: &Desk, place: &Place) -> Response {
    let (status, title, events, fragment, main) = match Seen::look(desk, place).await {
        Ok(Seen::List(list)) => {
            let title = "Pushes · Countersign".to_owned();
            (
                StatusCode::OK,
                title,
                Some("/console/events".to_owned()),
                "/".to_owned(),
                list.view(),
            )
        }
        Ok(Seen::Timeline(timeline)) => {
            let title = format!("{} · Countersign", timeline.id());
            let path = format!("/p/{}", timeline.id());
            let events = (!timeline.is_over()).then(|| format!("{path}/events"));
            (StatusCode::OK, title, events, path, timeline.view())
        }
        Ok(Seen::Nothing) => {
            let main = sorry("No such push", "This store has no push of that name.");
            (
                StatusCode::NOT_FOUND,
                "No such push · Countersign".to_owned(),
                None,
                "/".to_owned(),
                main,
            )
        }
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the console could not read the database"
            );
            let main = sorry("The database did not answer", "Reload to try again.");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "No answer · Countersign".to_owned(),
                None,
                "/".to_owned(),
                main,
            )
        }
    };
    let shell = Shell {
        title: &title,
        assets: "/console",
        events: events.as_deref(),
        fragment: &fragment,
        at: "/",
    };
    (status, shell.page(&main)).into_response()
}

fn sorry(what: &str, then: &str) -> Markup {
    html! {
        div id="live" {
            h1 { (what) }
            p id="summary" role="status" { (then) }
            p { a href="/" { "To the newest pushes" } }
        }
    }
}

struct Watching {
    desk: Desk,
    place: Place,
    seen: Option<u64>,
    _seat: Seat,
}

impl Watching {
    /// The hash of what is to be seen, once it has changed.
    async fn next(mut self) -> Option<(u64, Self)> {
        loop {
            match Seen::look(&self.desk, &self.place).await {
                Ok(seen) => {
                    let now = seen.hash();
                    if self.seen.replace(now) != Some(now) {
                        return Some((now, self));
                    }
                }
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "the console could not read the database"
                    );
                }
            }
            tokio::select! {
                () = self.desk.stop.cancelled() => return None,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn events(desk: Desk, place: Place) -> Response {
    let Some(seat) = desk.seats.take() else {
        return live::full();
    };
    let watching = Watching {
        desk,
        place,
        seen: None,
        _seat: seat,
    };
    live::events(stream::unfold(watching, Watching::next))
}
