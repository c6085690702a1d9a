//! Pushes of a chunk: each delivery is written once, with its result, and nothing is lost or told twice for it.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, phone};
use shared::clock::Millis;
use shared::crypto::random_text;
use shared::domain::{Kind, PushState, Rules};
use shared::id::{ChunkId, DeliveryId, PushId, StoreId};
use shared::message::{Job, Message, Route};
use shared::store::{
    Begun, Chunk, Claimed, Committed, DeliveryResult, DeliveryRow, Device, Handover, NewBatch,
    NewRow, Recorded, SealedPolicy, Store, Wanted,
};

const NOW: Millis = 1_000_000;
const LEASE: Millis = 30_000;

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    committed: Committed,
    tenant: StoreId,
    device: Device,
}

/// A store whose user has one phone, and a chunk of two pushes to it that was just released.
async fn beds(test: &str) -> Vec<(Bed, Chunk)> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, committed) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let device = phone(Some("ab12"));
        let device = store.add_device(&tenant, &user, &device, 5, NOW).await;
        let device = device.unwrap().unwrap();
        let sealed = SealedPolicy {
            name: "p".to_owned(),
            apns: Some("sealed".to_owned()),
            fcm: None,
            rules: Rules::default(),
        };
        let set = store.put_push_policy(&tenant, "payroll", sealed, NOW);
        set.await.unwrap();
        let mut bed = Bed {
            name,
            left,
            store,
            committed,
            tenant,
            device,
        };
        let chunk = bed.released().await;
        beds.push((bed, chunk));
    }
    beds
}

fn row(line: i64) -> NewRow {
    NewRow {
        nonce: random_text::<12>(),
        ..samples::row(line, samples::content(Kind::Generic, "Hello"), NOW)
    }
}

fn result(claimed: Claimed, result: DeliveryResult) -> Recorded {
    Recorded {
        claimed,
        result,
        called: true,
    }
}

fn sent(claimed: Claimed) -> Recorded {
    let provider_id = Some("p".to_owned());
    result(claimed, DeliveryResult::Sent { provider_id })
}

impl Bed {
    async fn released(&mut self) -> Chunk {
        let new = NewBatch {
            store: self.tenant.clone(),
            name: "March".to_owned(),
            idempotency: None,
            atomic: false,
            max_per_second: None,
        };
        let Begun::Open(upload) = self.store.begin_upload(&new, NOW).await.unwrap() else {
            panic!("a fresh batch is open");
        };
        let rows = [row(1), row(2)];
        let took = self
            .store
            .take_rows(&upload, &rows, &[], (1, 2), |_| None, NOW);
        assert_eq!(took.await.unwrap().unwrap().new, 2);
        let picks = [(upload.batch.id.clone(), 1)];
        self.store.release(&picks, NOW).await.unwrap();
        let job = self.jobs().remove(0);
        Chunk {
            id: job.chunk.unwrap(),
            pushes: job.pushes,
        }
    }

    fn messages(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        for from in &mut self.committed {
            while let Ok(messages) = from.try_recv() {
                all.extend(messages.iter().cloned());
            }
        }
        all
    }

    fn jobs(&mut self) -> Vec<Job> {
        let messages = self.messages();
        let jobs = messages
            .iter()
            .filter(|m| matches!(m.route, Route::Jobs(_) | Route::Later(..)));
        jobs.map(|m| Job::decode(m).unwrap()).collect()
    }

    async fn claim(&self, wanted: Wanted, now: Millis) -> Vec<Claimed> {
        let claim = self.store.claim(&wanted, now, LEASE).await;
        claim.unwrap().claimed
    }

    async fn take(&self, chunk: &Chunk, now: Millis) -> Vec<Claimed> {
        let chunks = std::slice::from_ref(chunk);
        self.store.claim_chunks(chunks, now, LEASE).await.unwrap()
    }

    async fn deliveries(&self, push: &PushId) -> Vec<DeliveryRow> {
        self.store.deliveries(push).await.unwrap()
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

#[tokio::test]
async fn a_delivery_is_written_once_and_a_second_job_claims_nothing() {
    for (mut bed, chunk) in beds("bulk-once").await {
        let name = bed.name;
        let claimed = bed.take(&chunk, NOW).await;
        assert_eq!(claimed.len(), 2, "{name}");
        assert!(bed.deliveries(&chunk.pushes[0]).await.is_empty(), "{name}");
        assert!(bed.take(&chunk, NOW + LEASE * 9).await.is_empty(), "{name}");
        // The phone that rings before the result is written finds its prompts.
        let prompts = bed.store.prompts(&bed.device, NOW + 1).await.unwrap();
        assert_eq!(prompts.len(), 2, "{name}");
        let one = bed.store.prompt(&bed.device, &chunk.pushes[0]).await;
        assert!(one.unwrap().is_some(), "{name}");
        let results: Vec<_> = claimed.into_iter().map(sent).collect();
        bed.store.record(&results, NOW + 50).await.unwrap();
        bed.store.record(&results, NOW + 60).await.unwrap();
        for push in &chunk.pushes {
            let rows = bed.deliveries(push).await;
            let told: Vec<_> = rows
                .iter()
                .map(|d| (d.state.as_str(), d.attempts))
                .collect();
            assert_eq!(told, [("sent", 1)], "{name}");
        }
        bed.store.chunks_sent(&[chunk.id]).await.unwrap();
        let later = NOW + 10 * LEASE;
        assert_eq!(bed.store.resend_unsent(later, LEASE).await.unwrap(), 0);
        assert!(bed.jobs().is_empty(), "{name}");
        bed.end().await;
    }
}

#[tokio::test]
async fn what_a_dead_worker_had_claimed_is_sent_by_another_one() {
    for (mut bed, chunk) in beds("bulk-dead").await {
        let name = bed.name;
        let mut claimed = bed.take(&chunk, NOW).await;
        let lost = claimed.pop().unwrap();
        bed.store
            .record(&[sent(claimed.remove(0))], NOW + 5)
            .await
            .unwrap();
        assert_eq!(
            bed.store.resend_unsent(NOW + LEASE, LEASE).await.unwrap(),
            0
        );
        let due = NOW + LEASE + 20_000;
        assert_eq!(
            bed.store.resend_unsent(due, LEASE).await.unwrap(),
            1,
            "{name}"
        );
        let job = bed.jobs().remove(0);
        assert_eq!((&job.pushes, &job.chunk), (&vec![lost.push.clone()], &None));
        let wanted = Wanted {
            pushes: job.pushes,
            ..Wanted::default()
        };
        let again = bed.claim(wanted, due).await;
        assert_eq!(again.len(), 1, "{name}");
        // The first worker was only slow: its result changes nothing any more.
        let failed = DeliveryResult::Failed {
            reason: "late".to_owned(),
            address_gone: None,
        };
        bed.store
            .record(&[result(lost.clone(), failed)], due + 1)
            .await
            .unwrap();
        assert_eq!(
            bed.deliveries(&lost.push).await[0].state.as_str(),
            "sending"
        );
        bed.store
            .record(&[sent(again[0].clone())], due + 2)
            .await
            .unwrap();
        assert_eq!(bed.deliveries(&lost.push).await[0].state.as_str(), "sent");
        let next = due + LEASE + 20_000;
        assert_eq!(
            bed.store.resend_unsent(next, LEASE).await.unwrap(),
            0,
            "{name}"
        );
        bed.end().await;
    }
}

#[tokio::test]
async fn a_phone_may_be_faster_than_the_result() {
    for (bed, chunk) in beds("bulk-fetched").await {
        let claimed = bed.take(&chunk, NOW).await;
        let push = claimed[0].push.clone();
        bed.store
            .fetched(&bed.device.id, &[&push], NOW + 1)
            .await
            .unwrap();
        let again = DeliveryResult::Retry {
            after: 1_000,
            reason: "busy".to_owned(),
        };
        let results: Vec<_> = claimed
            .into_iter()
            .map(|one| result(one, again.clone()))
            .collect();
        bed.store.record(&results, NOW + 5).await.unwrap();
        let rows = bed.deliveries(&push).await;
        assert_eq!(
            (rows[0].state.as_str(), rows[0].attempts),
            ("fetched", 1),
            "{}",
            bed.name
        );
        let other = chunk.pushes.iter().find(|one| **one != push).unwrap();
        assert_eq!(bed.deliveries(other).await[0].state.as_str(), "retry_wait");
        bed.end().await;
    }
}

#[tokio::test]
async fn a_push_that_ends_during_the_call_tells_its_device_once() {
    for (mut bed, chunk) in beds("bulk-ended").await {
        let name = bed.name;
        let claimed = bed.take(&chunk, NOW).await;
        let push = claimed[0].push.clone();
        let ended = bed
            .store
            .cancel(&bed.tenant, &push, "by_sender", NOW + 1)
            .await;
        assert_eq!(ended.unwrap().unwrap().state, PushState::Cancelled);
        let told = |bed: &mut Bed| {
            let messages = bed.messages();
            let status = messages.iter().filter(
                |m| matches!(&m.route, Route::Status(key) if key.ends_with(".device_withdrawn")),
            );
            status.count()
        };
        assert_eq!(told(&mut bed), 0, "{name}: it has no delivery yet");
        let results: Vec<_> = claimed.into_iter().map(sent).collect();
        bed.store.record(&results, NOW + 5).await.unwrap();
        bed.store.record(&results, NOW + 6).await.unwrap();
        assert_eq!(told(&mut bed), 1, "{name}");
        let rows = bed.deliveries(&push).await;
        assert_eq!(rows[0].state.as_str(), "withdrawn", "{name}");
        assert_eq!(rows[0].id, DeliveryId::of(&push, &bed.device.id));
        bed.end().await;
    }
}

#[tokio::test]
async fn an_unknown_chunk_claims_what_is_there() {
    for (bed, chunk) in beds("bulk-unknown").await {
        let other = Chunk {
            id: ChunkId::fresh(NOW),
            pushes: chunk.pushes.clone(),
        };
        assert_eq!(bed.take(&other, NOW).await.len(), 2, "{}", bed.name);
        bed.end().await;
    }
}
