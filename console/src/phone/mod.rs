//! The phones of a simulated fleet, side by side. They speak the device's protocol with the API and know nothing else of it.

mod answer;
mod board;
mod kin;
mod screen;
mod view;

use crate::assets::{ICON, SCRIPT, STYLE};
use crate::guard::guard;
use crate::live::{self, Seat, Seats};
use answer::Answer;
use axum::extract::{Form, Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, extract::rejection::FormRejection};
use board::Board;
use futures_util::stream;
use kin::{Enrol, Notified};
use serde::Deserialize;
use simulator::{Fleet, Rang};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// How often the phones are asked while somebody watches.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Phones {
    board: Board,
    seats: Seats,
    stop: CancellationToken,
}

/// The pages under `/phone`: up to four phones of `fleet`, the first by name. Its streams end at `stop`.
///
/// While a page is open, each phone asks for its prompts once a second; without one nothing runs. A phone that comes back from its
/// airplane mode answers by hand from then on, whatever it did before.
pub fn phone_router(fleet: Fleet, stop: CancellationToken) -> Router {
    let phones = Phones {
        board: Board::new(fleet),
        seats: Seats::default(),
        stop,
    };
    Router::new()
        .route("/phone", get(page))
        .route("/phone/screens", get(screens))
        .route("/phone/events", get(events))
        .route("/phone/{name}/answer", post(answer))
        .route("/phone/{name}/airplane", post(airplane))
        .route("/phone/{name}/invite", post(invite))
        .route("/phone/{name}/notice", post(notice))
        .route("/phone/enrol", post(enrol))
        .route("/phone/app.js", get(async || SCRIPT))
        .route("/phone/app.css", get(async || STYLE))
        .route("/phone/icon.svg", get(async || ICON))
        .route_layer(middleware::from_fn(guard))
        .with_state(phones)
}

async fn page(State(phones): State<Phones>) -> Response {
    phones.board.look().await;
    view::page(&phones.board).into_response()
}

async fn screens(State(phones): State<Phones>) -> Response {
    phones.board.look().await;
    view::screens(&phones.board).into_response()
}

struct Watching {
    phones: Phones,
    versions: watch::Receiver<u64>,
    rings: Option<broadcast::Receiver<Rang>>,
    told: bool,
    _seat: Seat,
}

impl Watching {
    /// The next version, once something has changed; the present one at the beginning.
    async fn next(mut self) -> Option<(u64, Self)> {
        loop {
            tokio::select! {
                () = self.phones.stop.cancelled() => return None,
                () = self.phones.board.look() => {}
            }
            if !self.told || self.versions.has_changed().unwrap_or(false) {
                self.told = true;
                let version = *self.versions.borrow_and_update();
                return Some((version, self));
            }
            tokio::select! {
                () = self.phones.stop.cancelled() => return None,
                _ = self.versions.changed() => {}
                () = ring(&mut self.rings) => self.phones.board.look_again().await,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// Returns when a phone has rung.
async fn ring(rings: &mut Option<broadcast::Receiver<Rang>>) {
    if let Some(receiver) = rings {
        match receiver.recv().await {
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => *rings = None,
        }
    }
    std::future::pending::<()>().await;
}

async fn events(State(phones): State<Phones>) -> Response {
    let Some(seat) = phones.seats.take() else {
        return live::full();
    };
    let watching = Watching {
        versions: phones.board.versions(),
        rings: Some(phones.board.fleet().listen()),
        told: false,
        _seat: seat,
        phones,
    };
    live::events(stream::unfold(watching, Watching::next))
}

/// A refusal in one line. The page never leads here.
fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, why).into_response()
}

async fn answer(
    State(phones): State<Phones>,
    Path(name): Path<String>,
    form: Result<Form<Answer>, FormRejection>,
) -> Response {
    let Some(phone) = phones.board.phone(&name) else {
        return refused(StatusCode::NOT_FOUND, "no such phone");
    };
    match form {
        Ok(Form(answer)) if answer.send(&phones.board, &phone).await => {
            Redirect::to("/phone").into_response()
        }
        Ok(_) | Err(_) => refused(StatusCode::BAD_REQUEST, "no such answer"),
    }
}

#[derive(Deserialize)]
struct Airplane {
    on: bool,
}

async fn airplane(
    State(phones): State<Phones>,
    Path(name): Path<String>,
    form: Result<Form<Airplane>, FormRejection>,
) -> Response {
    if phones.board.phone(&name).is_none() {
        return refused(StatusCode::NOT_FOUND, "no such phone");
    }
    let Ok(Form(Airplane { on })) = form else {
        return refused(StatusCode::BAD_REQUEST, "on is true or false");
    };
    phones.board.airplane(&name, on);
    if !on {
        phones.board.look_again().await;
    }
    Redirect::to("/phone").into_response()
}

async fn invite(State(phones): State<Phones>, Path(name): Path<String>) -> Response {
    let Some(phone) = phones.board.phone(&name) else {
        return refused(StatusCode::NOT_FOUND, "no such phone");
    };
    kin::invite(&phones.board, &phone).await;
    Redirect::to("/phone").into_response()
}

async fn enrol(State(phones): State<Phones>, form: Result<Form<Enrol>, FormRejection>) -> Response {
    match form {
        Ok(Form(enrol)) if enrol.run(&phones.board).await => {
            phones.board.look_again().await;
            Redirect::to("/phone").into_response()
        }
        Ok(_) | Err(_) => refused(StatusCode::BAD_REQUEST, "this link lets no phone in"),
    }
}

async fn notice(
    State(phones): State<Phones>,
    Path(name): Path<String>,
    form: Result<Form<Notified>, FormRejection>,
) -> Response {
    let Some(phone) = phones.board.phone(&name) else {
        return refused(StatusCode::NOT_FOUND, "no such phone");
    };
    match form {
        Ok(Form(notified)) if notified.run(&phones.board, &phone).await => {
            phones.board.look_again().await;
            Redirect::to("/phone").into_response()
        }
        Ok(_) | Err(_) => refused(StatusCode::BAD_REQUEST, "no such answer"),
    }
}
