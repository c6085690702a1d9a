//! How often a person is asked, one suite for both databases: what is let through, what takes another one's place, what is kept back.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, key, phone};
use shared::clock::Millis;
use shared::domain::{Kind, OpenPrompts, PushState, Rules};
use shared::id::{DeviceId, KeyId, PushId, StoreId, UserId};
use shared::message::{Job, Lane, Message, Route};
use shared::store::{
    Action, Answer, Answered, Committed, Consumed, Handover, NewPush, Page, SealedPolicy, Store,
    Taken, USABLE, UserRef, Wanted,
};

const NOW: Millis = 1_000_000;
const RP: &str = "payroll";

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    committed: Committed,
    tenant: StoreId,
    user: UserId,
    device: DeviceId,
}

async fn beds(test: &str, rules: Rules) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, committed) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let device = phone(Some("aa"));
        let device = store.add_device(&tenant, &user, &device, 10, NOW).await;
        let device = device.unwrap().unwrap().id;
        let bed = Bed {
            name,
            left,
            store,
            committed,
            tenant,
            user,
            device,
        };
        bed.set(rules).await;
        beds.push(bed);
    }
    beds
}

impl Bed {
    async fn set(&self, rules: Rules) {
        let sealed = SealedPolicy {
            rules,
            name: "p".to_owned(),
            apns: Some("sealed".to_owned()),
            fcm: None,
        };
        let set = self.store.put_push_policy(&self.tenant, RP, sealed, NOW);
        assert_eq!(set.await.unwrap().sealed.rules, rules);
    }

    fn push(&self, kind: Kind, now: Millis) -> NewPush {
        NewPush {
            match_required: kind == Kind::Confirm,
            expires_at: now + 120_000,
            ..samples::push(&self.tenant, samples::content(kind, "Sign in"), now)
        }
    }

    async fn take(&self, new: &[NewPush], now: Millis) -> Vec<Taken> {
        self.store.take(new, now).await.unwrap()
    }

    /// Takes one and says what became of it.
    async fn sent(&self, kind: Kind, now: Millis) -> (PushId, String) {
        let new = self.push(kind, now);
        let taken = self.take(std::slice::from_ref(&new), now).await;
        assert_eq!(taken, [Taken::New(self.user.clone())], "{}", self.name);
        let how = self.how(&new.id).await;
        (new.id, how)
    }

    /// The push's state and reason.
    async fn how(&self, push: &PushId) -> String {
        let row = self.store.push(push).await.unwrap().unwrap();
        format!("{} {}", row.state, row.reason).trim().to_owned()
    }

    /// Reports fraud. Gives the events of it.
    async fn report(&mut self, push: &PushId, kind: Kind, now: Millis) -> Vec<serde_json::Value> {
        self.told();
        let answer = Answer {
            push,
            kind,
            device: &self.device,
            approves: false,
            reason: "fraud_reported",
            verified: false,
            proof_hash: "p",
            proof: "p",
            key: &key(),
        };
        self.store.answer(&answer, now).await.unwrap();
        let mut events = Vec::new();
        for class in &mut self.committed {
            while let Ok(more) = class.try_recv() {
                for message in more {
                    events.extend(shared::event::decode(&message).unwrap());
                }
            }
        }
        let report = |event: &shared::message::Event| event.kind.contains("fraud_reported");
        let events = events.into_iter().filter(report);
        events.map(|event| event.data).collect()
    }

    async fn answer(&self, push: &PushId, approves: bool, now: Millis) {
        let answer = Answer {
            push,
            kind: Kind::Confirm,
            device: &self.device,
            approves,
            reason: "user_declined",
            verified: false,
            proof_hash: "p",
            proof: "p",
            key: &key(),
        };
        let answered = self.store.answer(&answer, now).await.unwrap();
        assert!(matches!(answered, Answered::Counted { .. }), "{answered:?}");
    }

    /// The pushes that jobs want sent, and how many ends were told, since the last call.
    fn told(&mut self) -> (Vec<PushId>, usize) {
        let (mut jobs, mut ends) = (Vec::new(), 0);
        for class in &mut self.committed {
            while let Ok(more) = class.try_recv() {
                for message in more {
                    match &message.route {
                        Route::Jobs(_) => jobs.extend(Job::decode(&message).unwrap().pushes),
                        Route::Status(_) => ends += ends_in(&message),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        (jobs, ends)
    }

    async fn open(&self) -> Vec<PushId> {
        let page = Page {
            limit: 10_000,
            ..Page::default()
        };
        let all = self.store.pushes(&self.tenant, &page).await.unwrap();
        let open = all.into_iter();
        open.filter(|push| !push.state.is_terminal())
            .map(|push| push.id)
            .collect()
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

fn ends_in(message: &Message) -> usize {
    let events = shared::event::decode(message).unwrap();
    events
        .iter()
        .filter(|event| event.push_ended().is_some())
        .count()
}

fn often(open_prompts: OpenPrompts) -> Rules {
    Rules {
        max_prompts: 1_000,
        open_prompts,
        cooldown: 0,
        ..Rules::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_prompt_takes_the_place_of_the_open_one_with_its_event() {
    for mut bed in beds("supersede", often(OpenPrompts::Supersede)).await {
        let (first, _) = bed.sent(Kind::Confirm, NOW).await;
        let (told, _) = bed.sent(Kind::Generic, NOW).await;
        let mut bulk = bed.push(Kind::Confirm, NOW);
        bulk.lane = Lane::Bulk;
        bed.take(std::slice::from_ref(&bulk), NOW).await;
        assert_eq!(bed.how(&first).await, "accepted", "{}", bed.name);
        let wanted = Wanted {
            pushes: vec![first.clone()],
            retries: vec![],
        };
        bed.store.claim(&wanted, NOW, 30_000).await.unwrap();
        bed.told();
        let (second, how) = bed.sent(Kind::Process, NOW + 1).await;
        assert_eq!(how, "accepted");
        assert_eq!(bed.how(&first).await, "cancelled superseded");
        assert_eq!(bed.told(), (vec![second.clone()], 1));
        let deliveries = bed.store.deliveries(&first).await.unwrap();
        assert_eq!(deliveries[0].state.as_str(), "withdrawn");
        // Neither what is only told nor a batch is touched, or touches.
        assert_eq!(bed.how(&told).await, "accepted");
        assert_eq!(bed.how(&bulk.id).await, "accepted");
        // Whoever asks for the other app is another relying party.
        let mut other = bed.push(Kind::Confirm, NOW + 2);
        other.content.relying_party = "cards".to_owned();
        bed.take(std::slice::from_ref(&other), NOW + 2).await;
        assert_eq!(bed.how(&second).await, "accepted");
        // What has ended, or whose time is over, ends no second time.
        bed.told();
        let (_, how) = bed.sent(Kind::Confirm, NOW + 500_000).await;
        assert_eq!(
            (how.as_str(), bed.told().1),
            ("accepted", 0),
            "{}",
            bed.name
        );
        assert_eq!(bed.how(&second).await, "accepted", "the sweep expires it");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_in_one_group_commit_the_last_stays_open() {
    for mut bed in beds("group", often(OpenPrompts::Supersede)).await {
        let key = |new: NewPush| NewPush {
            idempotency: Some(("k".to_owned(), "h".to_owned())),
            ..new
        };
        let (before, _) = bed.sent(Kind::Confirm, NOW).await;
        bed.told();
        let one = key(bed.push(Kind::Confirm, NOW + 1));
        let two = bed.push(Kind::Confirm, NOW + 2);
        // The same request as the first: it is no newer prompt.
        let same = key(bed.push(Kind::Confirm, NOW + 3));
        let taken = bed.take(&[one.clone(), two.clone(), same], NOW + 3).await;
        assert!(matches!(&taken[2], Taken::Replayed(row) if row.id == one.id));
        assert_eq!(
            bed.open().await,
            std::slice::from_ref(&two.id),
            "{}",
            bed.name
        );
        assert_eq!(bed.told(), (vec![two.id.clone()], 2));
        for older in [&before, &one.id] {
            assert_eq!(bed.how(older).await, "cancelled superseded");
        }
        // The slot was put right: the next one takes the place of the one that is open.
        let (last, _) = bed.sent(Kind::Confirm, NOW + 4).await;
        assert_eq!(bed.open().await, [last]);
        assert_eq!(bed.how(&two.id).await, "cancelled superseded");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_refuse_a_second_prompt_or_leave_both_open() {
    for mut bed in beds("refuse", often(OpenPrompts::Refuse)).await {
        let key = |new: NewPush| NewPush {
            idempotency: Some(("k".to_owned(), "h".to_owned())),
            ..new
        };
        let first = key(bed.push(Kind::Confirm, NOW));
        let second = bed.push(Kind::Confirm, NOW);
        let taken = bed.take(&[first.clone(), second.clone()], NOW).await;
        assert_eq!(
            taken,
            [Taken::New(bed.user.clone()), Taken::PromptOpen],
            "{}",
            bed.name
        );
        assert_eq!(bed.told(), (vec![first.id.clone()], 0));
        assert!(bed.store.push(&second.id).await.unwrap().is_none());
        let third = bed.push(Kind::Process, NOW + 1);
        let again = key(bed.push(Kind::Confirm, NOW + 1));
        let taken = bed.take(&[third, again], NOW + 1).await;
        assert_eq!(taken[0], Taken::PromptOpen);
        assert!(matches!(&taken[1], Taken::Replayed(row) if row.id == first.id));
        assert_eq!(bed.sent(Kind::Generic, NOW + 1).await.1, "accepted");
        bed.answer(&first.id, true, NOW + 2).await;
        let (fourth, how) = bed.sent(Kind::Confirm, NOW + 3).await;
        assert_eq!(how, "accepted", "{}: the first has ended", bed.name);
        bed.set(often(OpenPrompts::Many)).await;
        let (fifth, _) = bed.sent(Kind::Confirm, NOW + 4).await;
        assert_eq!(bed.how(&fourth).await, "accepted");
        assert_eq!(bed.how(&fifth).await, "accepted");
        bed.end().await;
    }
}

/// Fifty callers on what could be as many processes: the databases see them one by one.
async fn storm(bed: &Bed) -> Vec<Taken> {
    let calls = (0..50).map(|n| {
        let (store, new) = (bed.store.clone(), bed.push(Kind::Confirm, NOW + n));
        tokio::spawn(async move { store.take(&[new], NOW + 50).await })
    });
    let calls: Vec<_> = calls.collect();
    let mut all = Vec::new();
    for call in calls {
        all.extend(call.await.unwrap().unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_parallel_requests_for_one_user_one_prompt_stays_open() {
    for mut bed in beds("storm", often(OpenPrompts::Supersede)).await {
        // Workers and phones are at it at the same time, which take pushes and users in their own order.
        let (store, device) = (bed.store.clone(), bed.device.clone());
        let tenant = bed.tenant.clone();
        let others = tokio::spawn(async move {
            for n in 0..40 {
                let page = Page {
                    limit: 20,
                    ..Page::default()
                };
                let pushes = store.pushes(&tenant, &page).await.unwrap();
                let pushes: Vec<_> = pushes.into_iter().map(|push| push.id).collect();
                if let Some(push) = pushes.first() {
                    let answer = Answer {
                        push,
                        kind: Kind::Confirm,
                        device: &device,
                        approves: n % 2 == 0,
                        reason: "x",
                        verified: false,
                        proof_hash: "p",
                        proof: "p",
                        key: &key(),
                    };
                    store.answer(&answer, NOW + n).await.unwrap();
                }
                let wanted = Wanted {
                    pushes,
                    retries: vec![],
                };
                store.claim(&wanted, NOW + n, 30_000).await.unwrap();
            }
        });
        let taken = storm(&bed).await;
        others.await.unwrap();
        let new = |one: &&Taken| matches!(one, Taken::New(_));
        assert_eq!(
            taken.iter().filter(new).count(),
            50,
            "{}: {taken:?}",
            bed.name
        );
        let open = bed.open().await.len();
        assert!(open <= 1, "{}: {open}", bed.name);
        let ends = bed.told().1;
        assert_eq!(ends, 50 - open, "{}: an event for each end", bed.name);
        bed.end().await;
    }
    for bed in beds("storm-refuse", often(OpenPrompts::Refuse)).await {
        let taken = storm(&bed).await;
        let refused = taken.iter().filter(|one| **one == Taken::PromptOpen);
        assert_eq!(refused.count(), 49, "{}: {taken:?}", bed.name);
        assert_eq!(bed.open().await.len(), 1);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_denial_the_user_is_left_alone_until_the_time_is_over_or_an_approval() {
    let rules = Rules {
        max_prompts: 1_000,
        open_prompts: OpenPrompts::Many,
        cooldown: 30_000,
        ..Rules::default()
    };
    for mut bed in beds("cooldown", rules).await {
        let (spare, _) = bed.sent(Kind::Confirm, NOW).await;
        let (denied, _) = bed.sent(Kind::Confirm, NOW).await;
        bed.answer(&denied, false, NOW + 1_000).await;
        bed.told();
        let (kept, how) = bed.sent(Kind::Confirm, NOW + 30_999).await;
        assert_eq!(how, "failed cooldown", "{}", bed.name);
        assert_eq!(bed.told(), (vec![], 1), "nothing to send, one end to tell");
        let row = bed.store.push(&kept).await.unwrap().unwrap();
        assert_eq!(row.state, PushState::Failed);
        assert_eq!(
            bed.sent(Kind::Process, NOW + 30_999).await.1,
            "failed cooldown"
        );
        assert_eq!(bed.sent(Kind::Generic, NOW + 30_999).await.1, "accepted");
        assert_eq!(bed.sent(Kind::Confirm, NOW + 31_000).await.1, "accepted");
        let (denied, _) = bed.sent(Kind::Confirm, NOW + 31_000).await;
        bed.answer(&denied, false, NOW + 32_000).await;
        bed.answer(&spare, true, NOW + 33_000).await;
        assert_eq!(
            bed.sent(Kind::Confirm, NOW + 33_001).await.1,
            "accepted",
            "{}: an approval lifts it",
            bed.name
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_too_often_and_what_is_kept_back_ends_no_open_prompt() {
    for mut bed in beds("fatigue", Rules::default()).await {
        let mut how = Vec::new();
        for n in 0..10 {
            how.push(bed.sent(Kind::Confirm, NOW + n).await);
        }
        assert!(how[..3].iter().all(|(_, how)| how == "accepted"));
        assert!(
            how[3..].iter().all(|(_, how)| how == "failed throttled"),
            "{}: {how:?}",
            bed.name
        );
        // Whoever floods takes nobody's prompt away but with one that rings.
        assert_eq!(bed.open().await, [how[2].0.clone()]);
        let (jobs, ends) = bed.told();
        assert_eq!((jobs.len(), ends), (3, 9));
        // The same in one group commit.
        bed.answer(&how[2].0, true, NOW + 20).await;
        let many: Vec<_> = (21..31).map(|n| bed.push(Kind::Confirm, NOW + n)).collect();
        bed.told();
        bed.take(&many, NOW + 31).await;
        assert_eq!(bed.open().await, [many[2].id.clone()], "{}", bed.name);
        assert_eq!(bed.told(), (vec![many[2].id.clone()], 9));
        // A minute later there is room for one, since three were asked within it until then.
        let late = NOW + 21 + 60_000;
        assert_eq!(bed.sent(Kind::Confirm, late).await.1, "accepted");
        assert_eq!(bed.sent(Kind::Confirm, late).await.1, "failed throttled");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_01_no_answer_counts_later_than_600_s_whatever_was_asked_for() {
    for bed in beds("longest", often(OpenPrompts::Many)).await {
        let long = |n: i64| NewPush {
            expires_at: NOW + 3_600_000,
            ..bed.push(Kind::Confirm, NOW - n)
        };
        let (one, two) = (long(0), long(1));
        bed.take(&[one.clone(), two.clone()], NOW).await;
        bed.answer(&one.id, true, NOW + 599_999).await;
        let answer = Answer {
            push: &two.id,
            kind: Kind::Confirm,
            device: &bed.device,
            approves: true,
            reason: "user_approved",
            verified: true,
            proof_hash: "late",
            proof: "p",
            key: &key(),
        };
        // It was taken a millisecond earlier.
        let late = bed.store.answer(&answer, NOW + 599_999).await.unwrap();
        assert_eq!(late, Answered::TooLate, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_good_for_300_s() {
    for bed in beds("usable", often(OpenPrompts::Many)).await {
        let mut pushes = Vec::new();
        for n in 0..2 {
            let (push, _) = bed.sent(Kind::Confirm, NOW + n).await;
            bed.answer(&push, true, NOW + 1_000).await;
            pushes.push(bed.store.push(&push).await.unwrap().unwrap());
        }
        let action = Action::default();
        let late = NOW + 1_000 + USABLE;
        let early = bed.store.consume(&pushes[0], &action, late - 1).await;
        assert_eq!(early.unwrap(), Consumed::Now(late - 1), "{}", bed.name);
        let again = bed.store.consume(&pushes[0], &action, late).await;
        assert_eq!(again.unwrap(), Consumed::Before(late - 1));
        let after = bed.store.consume(&pushes[1], &action, late).await;
        assert_eq!(after.unwrap(), Consumed::TooLate);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fraud_report_locks_the_initiator_for_one_sender_and_nobody_else() {
    for mut bed in beds("fraud", often(OpenPrompts::Many)).await {
        let (sender, stranger) = (KeyId::fresh(NOW), KeyId::fresh(NOW));
        let eve = bed.store.add_user(&bed.tenant, "eve", NOW).await.unwrap();
        let of = |bed: &Bed, key: &KeyId, initiator: Option<&str>, now: Millis| {
            let mut new = bed.push(Kind::Confirm, now);
            new.terms.key = Some(key.clone());
            new.terms.initiator = initiator.map(str::to_owned);
            new
        };
        let first = of(&bed, &sender, Some("session 1"), NOW);
        bed.take(std::slice::from_ref(&first), NOW).await;
        let events = bed.report(&first.id, Kind::Confirm, NOW + 1).await;
        assert_eq!(events.len(), 1, "{}", bed.name);
        assert_eq!(events[0]["lock"]["of"], "initiator");
        let until = NOW + 1 + Rules::default().fraud_lock;
        let mut for_eve = of(&bed, &sender, Some("session 1"), NOW + 2);
        for_eve.user = UserRef::Id(eve.clone().unwrap());
        let taken = bed
            .take(
                &[
                    of(&bed, &sender, Some("session 1"), NOW + 2),
                    for_eve,
                    of(&bed, &sender, Some("session 2"), NOW + 2),
                    of(&bed, &sender, None, NOW + 2),
                    of(&bed, &stranger, Some("session 1"), NOW + 2),
                ],
                NOW + 2,
            )
            .await;
        assert_eq!(
            taken,
            [
                Taken::InitiatorLocked(until),
                Taken::InitiatorLocked(until),
                Taken::New(bed.user.clone()),
                Taken::New(bed.user.clone()),
                Taken::New(bed.user.clone()),
            ],
            "{}",
            bed.name
        );
        let mut told = of(&bed, &sender, Some("session 1"), NOW + 2);
        told.content.kind = Kind::Generic;
        let mut bulk = of(&bed, &sender, Some("session 1"), NOW + 2);
        bulk.lane = Lane::Bulk;
        let taken = bed.take(&[told.clone(), bulk.clone()], NOW + 2).await;
        assert!(taken.iter().all(|one| matches!(one, Taken::New(_))));
        // Neither of these two locks anything.
        assert!(
            bed.report(&told.id, Kind::Generic, NOW + 3)
                .await
                .is_empty()
        );
        assert!(
            bed.report(&bulk.id, Kind::Confirm, NOW + 3)
                .await
                .is_empty()
        );
        let late = of(&bed, &sender, Some("session 1"), until);
        let taken = bed.take(std::slice::from_ref(&late), until).await;
        assert_eq!(taken, [Taken::New(bed.user.clone())], "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_initiator_a_report_keeps_that_sender_from_the_user_until_it_is_lifted() {
    for mut bed in beds("fraud-user", often(OpenPrompts::Many)).await {
        let (sender, stranger) = (KeyId::fresh(NOW), KeyId::fresh(NOW));
        let of = |bed: &Bed, key: &KeyId, initiator: Option<&str>, now: Millis| {
            let mut new = bed.push(Kind::Confirm, now);
            new.terms.key = Some(key.clone());
            new.terms.initiator = initiator.map(str::to_owned);
            new
        };
        let (first, spare) = (
            of(&bed, &sender, None, NOW),
            of(&bed, &sender, None, NOW + 1),
        );
        bed.take(&[first.clone(), spare.clone()], NOW).await;
        let events = bed.report(&first.id, Kind::Confirm, NOW + 1).await;
        assert_eq!(events[0]["lock"]["of"], "user", "{}", bed.name);
        bed.answer(&spare.id, true, NOW + 2).await;
        let kept = of(&bed, &sender, None, NOW + 3);
        let named = of(&bed, &sender, Some("session 2"), NOW + 3);
        let other = of(&bed, &stranger, None, NOW + 3);
        let mut elsewhere = of(&bed, &sender, None, NOW + 3);
        elsewhere.content.relying_party = "cards".to_owned();
        let all = [kept, named, other, elsewhere];
        bed.take(&all, NOW + 3).await;
        for (push, how) in all.iter().zip([
            "failed fraud_lock",
            "failed fraud_lock",
            "accepted",
            "accepted",
        ]) {
            assert_eq!(bed.how(&push.id).await, how, "{}", bed.name);
        }
        let page = ("", 10);
        let locks = bed
            .store
            .fraud_locks(&bed.tenant, Some(&bed.user), None, page, NOW + 4);
        let locks = locks.await.unwrap();
        assert_eq!(locks.len(), 1, "{}", bed.name);
        assert_eq!((&locks[0].key, &locks[0].push), (&sender, &first.id));
        let lift = || {
            bed.store
                .lift_fraud_lock(&bed.tenant, &locks[0].id, NOW + 4)
        };
        assert!(lift().await.unwrap());
        assert!(!lift().await.unwrap());
        let after = of(&bed, &sender, None, NOW + 5);
        bed.take(std::slice::from_ref(&after), NOW + 5).await;
        assert_eq!(bed.how(&after.id).await, "accepted", "{}", bed.name);
        bed.set(Rules {
            fraud_lock: 0,
            ..often(OpenPrompts::Many)
        })
        .await;
        let events = bed.report(&after.id, Kind::Confirm, NOW + 6).await;
        assert!(events[0]["lock"].is_null(), "told, and nothing locked");
        bed.end().await;
    }
}
