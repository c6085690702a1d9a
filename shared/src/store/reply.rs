//! Passing completion events on to the queues that wait for them.

use super::db::{Arg, Error, Statement};
use super::{Store, to_json};
use crate::clock::Millis;
use crate::id::MessageId;
use crate::message::{EVENT, Event, Message, Route};
use std::collections::HashMap;

static WANTED: Statement = Statement::new(
    "SELECT id, reply_to, correlation_id, traceparent FROM pushes WHERE id {in:$1} AND reply_to IS NOT NULL
     UNION ALL
     SELECT id, reply_to, correlation_id, traceparent FROM approvals WHERE id {in:$1} AND reply_to IS NOT NULL",
);
static SEEN: Statement = Statement::new(
    "INSERT INTO inbox (event_id, seen_at) SELECT r.value, $2 FROM {texts:$1} WHERE true ON CONFLICT DO NOTHING RETURNING event_id",
);

impl Store {
    /// Promises each completion event to the queue that its push or approval names, once. Says how many were.
    pub async fn reply(&self, ended: &[Event], now: Millis) -> Result<usize, Error> {
        if ended.is_empty() {
            return Ok(0);
        }
        let subjects: Vec<_> = ended.iter().map(|event| &event.subject).collect();
        let rows = self
            .db
            .fetch(&WANTED, &[Arg::Text(&to_json(&subjects))])
            .await?;
        let mut wanted = HashMap::new();
        for row in &rows {
            let to = row.text("reply_to")?;
            let with = (
                row.maybe_text("correlation_id")?,
                row.maybe_text("traceparent")?,
            );
            wanted.insert(row.text("id")?, (to, with));
        }
        let events: Vec<_> = ended
            .iter()
            .filter(|event| wanted.contains_key(event.subject.as_str()))
            .collect();
        if events.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.begin().await?;
        let ids: Vec<_> = events.iter().map(|event| &event.id).collect();
        let args = [Arg::Text(&to_json(&ids)), Arg::Int(now)];
        let fresh = tx.fetch(&SEEN, &args).await?;
        let fresh: Vec<String> = fresh
            .iter()
            .map(|row| row.text("event_id"))
            .collect::<Result<_, _>>()?;
        let mut messages = Vec::with_capacity(fresh.len());
        for event in events
            .into_iter()
            .filter(|event| fresh.iter().any(|id| id == event.id.as_str()))
        {
            let Some((to, (correlation_id, traceparent))) = wanted.get(event.subject.as_str())
            else {
                continue;
            };
            messages.push(Message {
                id: MessageId::derived(&[event.id.as_str(), to]),
                route: Route::Direct(to.clone()),
                content_type: EVENT.to_owned(),
                correlation_id: correlation_id
                    .clone()
                    .or_else(|| Some(event.subject.to_string())),
                traceparent: traceparent.clone(),
                body: serde_json::to_vec(event).unwrap_or_default(),
            });
        }
        let count = messages.len();
        self.commit(tx, messages, now).await?;
        Ok(count)
    }
}
