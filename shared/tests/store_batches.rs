//! Batches in the database, one suite for both: each line once, whatever is sent again; released once; ended once.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, phone};
use shared::clock::Millis;
use shared::domain::{BatchState, Kind, PushState, UserStatus};
use shared::id::StoreId;
use shared::message::{Job, Lane, Message, Route};
use shared::store::{
    BatchRow, Begun, Chunk, Committed, Handover, NewBatch, NewRow, Refusal, RowCheck, Store, Took,
    Upload, UserRef,
};

const NOW: Millis = 1_000_000;
const DAY: Millis = 24 * 3_600_000;

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    committed: Committed,
    tenant: StoreId,
}

async fn beds(test: &str) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, committed) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        for user in ["ada", "bob", "eve"] {
            store.add_user(&tenant, user, NOW).await.unwrap().unwrap();
        }
        beds.push(Bed {
            name,
            left,
            store,
            committed,
            tenant,
        });
    }
    beds
}

fn row(line: i64, user: &str, key: Option<&str>, title: &str) -> NewRow {
    NewRow {
        key: key.map(str::to_owned),
        hash: format!("{user} {title}"),
        user: UserRef::External(user.to_owned()),
        lifetime: DAY,
        ..samples::row(line, samples::content(Kind::Generic, title), NOW)
    }
}

fn told(check: &RowCheck) -> Option<String> {
    match check {
        RowCheck::Good(_) => None,
        other => Some(format!("[\"{other:?}\"]")),
    }
}

impl Bed {
    fn asked(&self, key: &str) -> NewBatch {
        NewBatch {
            store: self.tenant.clone(),
            name: "March".to_owned(),
            idempotency: Some((key.to_owned(), "h".to_owned())),
            atomic: false,
            max_per_second: None,
        }
    }

    async fn open(&self, new: &NewBatch) -> Upload {
        match self.store.begin_upload(new, NOW).await.unwrap() {
            Begun::Open(upload) => upload,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    async fn take(&self, upload: &Upload, rows: &[NewRow]) -> Option<Took> {
        let lines = (rows[0].line, rows.last().unwrap().line);
        self.store
            .take_rows(upload, rows, &[], lines, told, NOW)
            .await
            .unwrap()
    }

    async fn batch(&self, upload: &Upload) -> BatchRow {
        let found = self.store.batch(&self.tenant, &upload.batch.id).await;
        found.unwrap().unwrap()
    }

    async fn release(&self, upload: &Upload, chunks: usize, now: Millis) -> i64 {
        let picks = [(upload.batch.id.clone(), chunks)];
        self.store.release(&picks, now).await.unwrap().rows
    }

    /// The pushes of the bulk jobs that were promised since the last look.
    fn jobs(&mut self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for from in &mut self.committed {
            while let Ok(messages) = from.try_recv() {
                let bulk = |m: &Message| m.route == Route::Jobs(Lane::Bulk);
                for message in messages.iter().filter(|m| bulk(m)) {
                    jobs.push(Job::decode(message).unwrap());
                }
            }
        }
        jobs
    }

    async fn claim(&self, job: &Job, now: Millis) {
        let chunk = Chunk {
            id: job.chunk.clone().unwrap(),
            pushes: job.pushes.clone(),
        };
        let chunks = [chunk];
        let claim = self.store.claim_chunks(&chunks, now, 30_000);
        claim.await.unwrap();
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

fn people(lines: std::ops::RangeInclusive<i64>) -> Vec<NewRow> {
    lines.map(|n| row(n, "ada", None, "Hello")).collect()
}

#[tokio::test]
async fn a_line_is_taken_once_however_often_it_comes() {
    for bed in beds("batch-once").await {
        let upload = bed.open(&bed.asked("march")).await;
        let took = bed.take(&upload, &people(1..=3)).await.unwrap();
        assert_eq!((took.new, took.again), (3, 0), "{}", bed.name);
        // The connection was cut; the whole file comes again.
        let again = bed.open(&bed.asked("march")).await;
        assert_eq!(again.batch.id, upload.batch.id);
        let took = bed.take(&again, &people(1..=5)).await.unwrap();
        assert_eq!((took.new, took.again), (2, 3), "{}", bed.name);
        assert!(
            bed.take(&upload, &people(6..=7)).await.is_none(),
            "the upload that began last has the right"
        );
        let changed = [row(2, "ada", None, "Other")];
        let took = bed.take(&again, &changed).await.unwrap();
        assert_eq!((took.new, took.refused), (0, 1), "another line 2");
        let row = bed.store.end_upload(&again, NOW).await.unwrap().unwrap();
        assert_eq!((row.accepted, row.lines), (5, 5));
        assert_eq!(row.state, BatchState::Running);
        let later = bed.store.begin_upload(&bed.asked("march"), NOW).await;
        assert!(matches!(later.unwrap(), Begun::Replayed(_)));
        let mut other = bed.asked("march");
        other.idempotency = Some(("march".to_owned(), "other".to_owned()));
        let reused = bed.store.begin_upload(&other, NOW).await.unwrap();
        assert!(matches!(reused, Begun::KeyReused));
        bed.end().await;
    }
}

#[tokio::test]
async fn a_key_asks_once_in_the_whole_store() {
    for bed in beds("batch-keys").await {
        let first = bed.open(&bed.asked("one")).await;
        let rows = [
            row(1, "ada", Some("a"), "Hello"),
            row(2, "ada", Some("a"), "Hello"),
            row(3, "bob", Some("a"), "Hello"),
            row(4, "nobody", None, "Hello"),
        ];
        let took = bed.take(&first, &rows).await.unwrap();
        assert_eq!((took.new, took.duplicates, took.refused), (1, 1, 2));
        // The same again says the same.
        let took = bed.take(&first, &rows).await.unwrap();
        assert_eq!((took.new, took.again), (0, 1), "{}", bed.name);
        let refusals = bed.store.batch_refusals(&first.batch.id, 0, 10).await;
        let refusals = refusals.unwrap();
        let lines: Vec<_> = refusals.iter().map(|one| one.line).collect();
        assert_eq!(lines, [2, 3, 4]);
        assert!(refusals[0].duplicate_of.is_some() && refusals[1].duplicate_of.is_none());
        let second = bed.open(&bed.asked("two")).await;
        let took = bed.take(&second, &rows[..1]).await.unwrap();
        assert_eq!((took.new, took.duplicates), (0, 1));
        let checks = bed.store.check_rows(&bed.tenant, &rows).await.unwrap();
        assert!(matches!(checks[0], RowCheck::Duplicate(_)));
        assert_eq!(checks[3], RowCheck::NoUser);
        bed.end().await;
    }
}

#[tokio::test]
async fn a_batch_is_released_in_chunks_and_done_when_all_have_ended() {
    for mut bed in beds("batch-release").await {
        let upload = bed.open(&bed.asked("march")).await;
        bed.take(&upload, &people(1..=300)).await.unwrap();
        let waiting = bed.store.releasable(NOW).await.unwrap();
        assert_eq!((waiting[0].waiting, waiting[0].chunk_rows), (300, 200));
        bed.store.end_upload(&upload, NOW).await.unwrap().unwrap();
        assert_eq!(bed.release(&upload, 1, NOW).await, 200, "{}", bed.name);
        let jobs = bed.jobs();
        assert_eq!((jobs.len(), jobs[0].pushes.len()), (1, 200));
        let flying = bed.store.bulk_in_flight().await.unwrap();
        assert_eq!(flying[0].rows, 200);
        bed.claim(&jobs[0], NOW + 5).await;
        assert!(bed.store.bulk_in_flight().await.unwrap().is_empty());
        // Nobody has a device: what was claimed has ended as failed, which is seen a second later.
        assert_eq!(bed.store.end_batches(NOW + 5).await.unwrap(), 0);
        assert_eq!(bed.store.end_batches(NOW + 1_005).await.unwrap(), 1);
        assert_eq!(bed.batch(&upload).await.state, BatchState::Running);
        assert_eq!(bed.release(&upload, 9, NOW + 6).await, 100);
        assert_eq!(bed.release(&upload, 9, NOW + 6).await, 0, "once");
        let jobs = bed.jobs();
        bed.claim(&jobs[0], NOW + 7).await;
        bed.store.end_batches(NOW + 1_007).await.unwrap();
        let done = bed.batch(&upload).await;
        assert_eq!(done.state, BatchState::Done);
        assert_eq!(done.outcomes.unwrap().states["failed"]["no_devices"], 300);
        let results = bed.store.batch_results(&upload.batch.id, 298, 10).await;
        let lines: Vec<_> = results.unwrap().iter().map(|one| one.line).collect();
        assert_eq!(lines, [299, 300]);
        bed.end().await;
    }
}

#[tokio::test]
async fn a_job_that_the_broker_lost_is_made_again() {
    for mut bed in beds("batch-lost").await {
        let upload = bed.open(&bed.asked("march")).await;
        bed.take(&upload, &people(1..=10)).await.unwrap();
        bed.release(&upload, 1, NOW).await;
        let first = bed.jobs();
        assert_eq!(bed.store.resend_lost(NOW + 30_000).await.unwrap(), 0);
        assert_eq!(bed.store.resend_lost(NOW + 61_000).await.unwrap(), 1);
        assert_eq!(bed.jobs(), first, "{}", bed.name);
        assert_eq!(bed.store.resend_lost(NOW + 62_000).await.unwrap(), 0);
        bed.end().await;
    }
}

#[tokio::test]
async fn paused_atomic_and_slow_batches_release_nothing_or_little() {
    for bed in beds("batch-pause").await {
        let upload = bed.open(&bed.asked("march")).await;
        bed.take(&upload, &people(1..=10)).await.unwrap();
        let id = upload.batch.id.clone();
        let move_to = async |to| bed.store.move_batch(&bed.tenant, &id, to).await.unwrap();
        move_to(BatchState::Paused).await.unwrap();
        assert!(bed.store.releasable(NOW).await.unwrap().is_empty());
        assert_eq!(bed.release(&upload, 1, NOW).await, 0, "{}", bed.name);
        let back = move_to(BatchState::Running).await.unwrap();
        assert_eq!(back.state, BatchState::Receiving, "lines are to come");
        assert!(move_to(BatchState::Running).await.is_none());
        let mut new = bed.asked("all");
        new.atomic = true;
        let atomic = bed.open(&new).await;
        bed.take(&atomic, &people(1..=10)).await.unwrap();
        assert_eq!(bed.release(&atomic, 1, NOW).await, 0);
        let unknown = [row(11, "nobody", None, "Hello")];
        bed.take(&atomic, &unknown).await.unwrap();
        let ended = bed.store.end_upload(&atomic, NOW).await.unwrap().unwrap();
        assert_eq!(ended.state, BatchState::Cancelled);
        assert_eq!(ended.reason, "lines_refused");
        let mut new = bed.asked("slow");
        new.max_per_second = Some(10);
        let slow = bed.open(&new).await;
        bed.take(&slow, &people(1..=10)).await.unwrap();
        assert_eq!(bed.release(&slow, 1, NOW).await, 2, "a fifth of a second");
        assert_eq!(bed.release(&slow, 1, NOW + 199).await, 0, "not yet");
        assert_eq!(bed.release(&slow, 1, NOW + 200).await, 2);
        // Whoever was held up catches up with one second.
        for _ in 0..2 {
            assert_eq!(bed.release(&slow, 1, NOW + 5_000).await, 2);
        }
        bed.end().await;
    }
}

#[tokio::test]
async fn a_cancelled_batch_ends_its_pushes_and_takes_no_more() {
    for mut bed in beds("batch-cancel").await {
        let upload = bed.open(&bed.asked("march")).await;
        for from in (1..=1_000).step_by(250) {
            bed.take(&upload, &people(from..=from + 249)).await.unwrap();
        }
        bed.release(&upload, 1, NOW).await;
        let id = upload.batch.id.clone();
        let row = bed
            .store
            .move_batch(&bed.tenant, &id, BatchState::Cancelled);
        assert_eq!(row.await.unwrap().unwrap().reason, "by_sender");
        assert!(bed.take(&upload, &people(1001..=1002)).await.is_none());
        assert!(bed.store.end_upload(&upload, NOW).await.unwrap().is_none());
        let mut rounds = 0;
        while bed.store.cancel_some(NOW + 9).await.unwrap() {
            rounds += 1;
        }
        assert_eq!(rounds, 3, "{}", bed.name);
        let row = bed.batch(&upload).await;
        assert_eq!((row.waiting, row.ended_at), (0, Some(NOW + 9)));
        let counts = row.outcomes.unwrap();
        assert_eq!(counts.states["cancelled"]["batch_cancelled"], 1_000);
        let jobs = bed.jobs();
        bed.claim(&jobs[0], NOW + 10).await;
        assert_eq!(
            bed.store.count_batch(&id).await.unwrap(),
            counts,
            "what is still in the broker asks nobody"
        );
        bed.end().await;
    }
}

#[tokio::test]
async fn an_answer_counts_from_the_moment_a_worker_has_it() {
    for mut bed in beds("batch-expiry").await {
        let upload = bed.open(&bed.asked("march")).await;
        let mut rows = people(1..=2);
        rows[0].lifetime = 60_000;
        bed.take(&upload, &rows).await.unwrap();
        let late = NOW + 6 * DAY;
        assert_eq!(bed.store.expire_chunk(late).await.unwrap(), None);
        bed.release(&upload, 1, late).await;
        let wanted = bed.jobs().remove(0);
        // With a device, so that it stays open.
        let user = bed.store.user_by_external(&bed.tenant, "ada").await;
        let user = user.unwrap().unwrap().id;
        let device = phone(None);
        let device = bed.store.add_device(&bed.tenant, &user, &device, 5, NOW);
        let device = device.await.unwrap().unwrap();
        let hidden = bed.store.prompts(&device, late).await.unwrap();
        assert!(hidden.is_empty(), "no phone sees what is not sent");
        bed.claim(&wanted, late).await;
        let shown = bed.store.prompts(&device, late).await.unwrap();
        assert_eq!(shown.len(), 2);
        let push = bed.store.push(&rows[0].id).await.unwrap().unwrap();
        assert_eq!(push.expires_at, late + 60_000);
        // A second job of the chunk, minutes later, postpones nothing.
        bed.claim(&wanted, late + 30_000).await;
        let next = bed.store.next_deadline().await.unwrap();
        assert_eq!(next, Some(late + 60_000), "{}", bed.name);
        assert_eq!(bed.store.expire(late + 60_000).await.unwrap(), 0);
        let ended = bed.store.expire_chunk(late + 60_000).await.unwrap();
        assert_eq!(ended, Some(1), "{}", bed.name);
        let next = bed.store.next_deadline().await.unwrap();
        assert_eq!(next, Some(late + rows[1].lifetime), "{}", bed.name);
        let ended = bed.store.expire_chunk(late + rows[1].lifetime).await;
        assert_eq!(ended.unwrap(), Some(1));
        assert_eq!(bed.store.next_deadline().await.unwrap(), None, "no more");
        // One that nobody ever sent says so.
        let other = bed.open(&bed.asked("forgotten")).await;
        let forgotten = [row(1, "bob", None, "Hello")];
        bed.take(&other, &forgotten).await.unwrap();
        bed.store.expire_chunk(NOW + 8 * DAY).await.unwrap();
        let push = bed.store.push(&forgotten[0].id).await.unwrap().unwrap();
        assert_eq!(
            (push.state, push.reason.as_str()),
            (PushState::Expired, "not_released")
        );
        bed.end().await;
    }
}

#[tokio::test]
async fn users_who_may_not_be_asked_and_faulty_lines_are_told_by_line() {
    for bed in beds("batch-refused").await {
        let upload = bed.open(&bed.asked("march")).await;
        let eve = bed.store.user_by_external(&bed.tenant, "eve").await;
        let eve = eve.unwrap().unwrap().id;
        let locked = Some(UserStatus::Locked);
        bed.store
            .change_user(&bed.tenant, &eve, locked, None, NOW)
            .await
            .unwrap();
        let faulty = [Refusal {
            line: 2,
            key: Some("k".to_owned()),
            duplicate_of: None,
            faults: "[]".to_owned(),
        }];
        let rows = [row(1, "eve", None, "Hello"), row(3, "bob", None, "Hello")];
        let took = bed
            .store
            .take_rows(&upload, &rows, &faulty, (1, 3), told, NOW);
        let took = took.await.unwrap().unwrap();
        assert_eq!((took.new, took.refused), (1, 2), "{}", bed.name);
        let refusals = bed.store.batch_refusals(&upload.batch.id, 0, 10).await;
        let refusals = refusals.unwrap();
        assert_eq!((refusals[0].line, refusals[1].line), (1, 2));
        assert!(refusals[0].faults.contains("UserInactive"));
        let waiting = bed.store.waiting(&bed.tenant).await.unwrap();
        assert_eq!((waiting.rows, waiting.bytes, waiting.of_store), (1, 10, 1));
        bed.end().await;
    }
}

#[tokio::test]
async fn one_process_leads_the_dispatch() {
    for bed in beds("batch-lease").await {
        let lead =
            async |who: &str, now| bed.store.lead_dispatch(who, now, now + 100).await.unwrap();
        assert!(lead("a", 0).await && !lead("b", 50).await && lead("a", 50).await);
        assert!(lead("b", 150).await, "{}: its time was over", bed.name);
        bed.store.leave_dispatch("b").await.unwrap();
        assert!(lead("a", 151).await);
        bed.end().await;
    }
}
