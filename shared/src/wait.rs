//! Who waits for the end of a push or an approval in this process, and how they are woken: by the status queue, never by polling the database.
//!
//! A ticket is taken before the state is read, so an end in between wakes it. The event itself carries nothing to the waiter: it reads
//! the database once more, which is the truth. A gap in the events (a lost connection) wakes everybody.

use crate::broker::{Error as BrokerError, Queue, SharedBroker};
use crate::event;
use crate::id::{ApprovalId, PushId};
use crate::message::Subject;
use crate::store::{ApprovalRow, Error, PushRow, Store};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many events may be unsettled at once: they are settled as fast as they are read.
const PREFETCH: u16 = 1_000;

type Slots = HashMap<Subject, watch::Sender<u64>>;

/// The waits of one process. Cheap to clone; ten thousand tickets cost a map entry each.
#[derive(Clone)]
pub struct Waits {
    slots: Arc<Mutex<Slots>>,
    gaps: watch::Sender<u64>,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            slots: Arc::default(),
            gaps: watch::Sender::new(0),
        }
    }
}

/// A place in the waiting room of one push or approval.
pub struct Ticket {
    waits: Waits,
    subject: Subject,
    news: watch::Receiver<u64>,
    gaps: watch::Receiver<u64>,
}

impl Waits {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a ticket. Read the state only after this.
    pub fn ticket(&self, subject: impl Into<Subject>) -> Ticket {
        let subject = subject.into();
        let gaps = self.gaps.subscribe();
        let news = self
            .slots()
            .entry(subject.clone())
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe();
        Ticket {
            waits: self.clone(),
            subject,
            news,
            gaps,
        }
    }

    /// How many pushes and approvals are waited for.
    pub fn waiting(&self) -> usize {
        self.slots().len()
    }

    fn tell(&self, subject: &Subject) {
        if let Some(slot) = self.slots().get(subject) {
            slot.send_modify(|version| *version += 1);
        }
    }

    fn tell_all(&self) {
        self.gaps.send_modify(|version| *version += 1);
    }

    /// Listens to this process' own status queue until `stop`.
    pub async fn listen(
        &self,
        broker: &SharedBroker,
        stop: CancellationToken,
    ) -> Result<(), BrokerError> {
        let mut events = broker.consume(Queue::StatusOwn, PREFETCH).await?;
        // What happened before the queue was there is in the database.
        self.tell_all();
        loop {
            let delivery = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                delivery = events.recv() => delivery,
            };
            let Some(delivery) = delivery else {
                return Ok(());
            };
            match delivery.message.as_ref().map(event::decode) {
                Ok(Ok(events)) => {
                    for event in &events {
                        self.tell(&event.subject);
                    }
                }
                Ok(Err(_)) | Err(_) => self.tell_all(),
            }
            delivery.ack().await;
        }
    }

    /// Waits until `push` has ended, at most `patience` by the monotonic clock or until `stop`. Gives the push as it is then; `None`
    /// when there is no such push.
    pub async fn ended(
        &self,
        store: &Store,
        push: &PushId,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<Option<PushRow>, Error> {
        let look = || store.push(push);
        let ended = |row: &PushRow| row.ended_at.is_some();
        self.until(push.into(), look, ended, patience, stop).await
    }

    /// The same for an approval.
    pub async fn approval_ended(
        &self,
        store: &Store,
        approval: &ApprovalId,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<Option<ApprovalRow>, Error> {
        let look = || store.approval(approval);
        let ended = |row: &ApprovalRow| row.ended_at.is_some();
        self.until(approval.into(), look, ended, patience, stop)
            .await
    }

    /// Looks again with every news of `subject` until it is gone or has ended.
    async fn until<T, F: Future<Output = Result<Option<T>, Error>>>(
        &self,
        subject: Subject,
        look: impl Fn() -> F,
        ended: impl Fn(&T) -> bool,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<Option<T>, Error> {
        let mut ticket = self.ticket(subject);
        let give_up = Instant::now() + patience;
        loop {
            let row = look().await?;
            if row.as_ref().is_none_or(&ended) {
                return Ok(row);
            }
            tokio::select! {
                () = ticket.news() => {}
                () = tokio::time::sleep_until(give_up) => return look().await,
                () = stop.cancelled() => return Ok(row),
            }
        }
    }
}

impl Ticket {
    /// Something has happened to it, or may have.
    pub async fn news(&mut self) {
        // Both senders live at least as long as this ticket.
        tokio::select! {
            _ = self.news.changed() => {}
            _ = self.gaps.changed() => {}
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut slots = self.waits.slots();
        // This ticket's own receiver is still counted.
        if slots
            .get(&self.subject)
            .is_some_and(|slot| slot.receiver_count() <= 1)
        {
            slots.remove(&self.subject);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Waits;
    use crate::id::PushId;
    use std::time::Duration;

    #[tokio::test]
    async fn a_ticket_taken_before_the_event_is_woken_and_leaves_nothing_behind() {
        let waits = Waits::default();
        let push = PushId::fresh(1);
        let (mut one, mut two) = (waits.ticket(&push), waits.ticket(&push));
        waits.tell(&(&push).into());
        one.news().await;
        two.news().await;
        waits.tell_all();
        one.news().await;
        drop(one);
        assert_eq!(waits.waiting(), 1);
        waits.tell(&(&PushId::fresh(2)).into());
        let quiet = tokio::time::timeout(Duration::from_millis(1), async {
            two.news().await;
            two.news().await;
        });
        assert!(quiet.await.is_err(), "another push's event wakes nobody");
        drop(two);
        assert_eq!(waits.waiting(), 0);
    }
}
