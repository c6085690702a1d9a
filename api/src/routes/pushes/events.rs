//! Follow a push by server-sent events.

use super::find;
use crate::app::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::view::PushView;
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use shared::store::PushRow;
use shared::wait::Ticket;
use std::convert::Infallible;
use std::time::Duration;

struct Following {
    app: App,
    ticket: Ticket,
    push: PushRow,
    shown: Option<String>,
    done: bool,
}

impl Following {
    /// The push as it is now, once it looks different from before; `None` at the end.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        while !self.done {
            let Ok(Some(push)) = self.app.store.push(&self.push.id).await else {
                return None;
            };
            let deliveries = self.app.store.deliveries(&push.id).await.ok()?;
            self.done = push.ended_at.is_some();
            let view = serde_json::to_string(&PushView::new(&push, Some(deliveries))).ok()?;
            if self.shown.as_ref() != Some(&view) {
                let name = if self.done { "ended" } else { "changed" };
                let event = Event::default().event(name).data(&view);
                self.shown = Some(view);
                self.push = push;
                return Some((Ok(event), self));
            }
            let stop = self.app.stop.clone();
            tokio::select! {
                () = self.ticket.news() => {}
                () = stop.cancelled() => return None,
            }
        }
        None
    }
}

/// Follow a push: an event `changed` with the push as it is now, one at each completion of a device, and `ended` at the end, which closes
/// the stream. A client that reconnects gets the present state first, so nothing is missed.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes/{push}/events", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404, body = Problem)))]
pub(crate) async fn events(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let push = find(&app, &caller, &store, &push, "pushes:read").await?;
    let following = Following {
        ticket: app.waits.ticket(&push.id),
        app,
        push,
        shown: None,
        done: false,
    };
    let stream = futures_util::stream::unfold(following, Following::next);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}
