//! The life of a push in the database, one suite for both: taken once, claimed by one worker, answered once, ended once.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, key, phone};
use serde_json::json;
use shared::clock::Millis;
use shared::domain::{
    DeliveryState, InstanceState, Kind, OpenPrompts, Provider, PushState, Rules, Target, UserStatus,
};
use shared::event;
use shared::id::{DeviceId, PushId, StoreId, UserId};
use shared::message::{Job, Lane, Message, Route};
use shared::secret::Secret;
use shared::store::{
    Address, Answer, Answered, Claimed, Committed, Definition, DeliveryResult, DeviceRefused,
    Handover, LONGEST_INSTANCE, NewProcess, NewPush, Opened, Page, ProcessLink, Recorded,
    SealedPolicy, Store, Taken, UserRef, Wanted,
};

const NOW: Millis = 1_000_000;
const LEASE: Millis = 30_000;

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    committed: Committed,
    tenant: StoreId,
    user: UserId,
    devices: Vec<DeviceId>,
}

async fn beds(test: &str) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, committed) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        let sealed = SealedPolicy {
            rules: Rules {
                max_prompts: 1_000,
                open_prompts: OpenPrompts::Many,
                cooldown: 0,
                ..Rules::default()
            },
            name: "p".to_owned(),
            apns: Some("sealed".to_owned()),
            fcm: None,
        };
        store
            .put_push_policy(&tenant, "payroll", sealed, NOW)
            .await
            .unwrap();
        let mut devices = Vec::new();
        for token in ["aa", "bb"] {
            let added = store
                .add_device(
                    &tenant,
                    &user,
                    &phone(Some(token)),
                    10,
                    NOW + devices.len() as i64,
                )
                .await
                .unwrap()
                .unwrap();
            devices.push(added.id);
        }
        beds.push(Bed {
            name,
            left,
            store,
            committed,
            tenant,
            user,
            devices,
        });
    }
    beds
}

impl Bed {
    fn push(&self, kind: Kind, target: Target) -> NewPush {
        NewPush {
            target,
            match_required: kind == Kind::Confirm,
            correlation_id: Some("order 7".to_owned()),
            ..samples::push(&self.tenant, samples::content(kind, "Sign in"), NOW)
        }
    }

    async fn taken(&mut self, kind: Kind, target: Target) -> PushId {
        let new = self.push(kind, target);
        let taken = self
            .store
            .take(std::slice::from_ref(&new), NOW)
            .await
            .unwrap();
        assert_eq!(taken, [Taken::New(self.user.clone())], "{}", self.name);
        assert!(matches!(
            self.messages()[..],
            [Message {
                route: Route::Jobs(Lane::Interactive),
                ..
            }]
        ));
        new.id
    }

    async fn claimed(&mut self, push: &PushId, now: Millis) -> Vec<Claimed> {
        let wanted = Wanted {
            pushes: vec![push.clone()],
            retries: vec![],
        };
        self.store.claim(&wanted, now, LEASE).await.unwrap().claimed
    }

    /// Everything committed since the last call.
    fn messages(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        for class in &mut self.committed {
            while let Ok(more) = class.try_recv() {
                all.extend(more);
            }
        }
        all
    }

    /// The types of the events committed since the last call, sorted.
    fn events(&mut self) -> Vec<String> {
        let mut all: Vec<String> = self
            .messages()
            .iter()
            .filter(|message| matches!(message.route, Route::Status(_)))
            .flat_map(|message| event::decode(message).unwrap())
            .map(|event| {
                event
                    .kind
                    .replace("countersign.push.", "")
                    .replace(".v1", "")
            })
            .collect();
        all.sort();
        all
    }

    async fn answer(
        &self,
        push: &PushId,
        kind: Kind,
        device: usize,
        approves: bool,
        proof: &str,
        now: Millis,
    ) -> Answered {
        let answer = Answer {
            push,
            kind,
            device: &self.devices[device],
            approves,
            reason: if approves {
                "user_approved"
            } else {
                "user_declined"
            },
            verified: false,
            proof_hash: proof,
            proof,
            key: &key(),
        };
        self.store.answer(&answer, now).await.unwrap()
    }

    async fn states(&self, push: &PushId) -> Vec<DeliveryState> {
        let mut rows = self.store.deliveries(push).await.unwrap();
        rows.sort_by(|a, b| a.device.cmp(&b.device));
        rows.into_iter().map(|row| row.state).collect()
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

fn result(claimed: &Claimed, result: DeliveryResult) -> Recorded {
    Recorded {
        claimed: claimed.clone(),
        result,
        called: true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_taken_once_for_an_idempotency_key() {
    for mut bed in beds("take").await {
        let with = |hash: &str, bed: &Bed| NewPush {
            idempotency: Some(("k1".to_owned(), hash.to_owned())),
            ..bed.push(Kind::Confirm, Target::All)
        };
        let (first, again, other) = (with("h", &bed), with("h", &bed), with("x", &bed));
        let taken = bed
            .store
            .take(&[first.clone(), again.clone()], NOW)
            .await
            .unwrap();
        assert_eq!(taken[0], Taken::New(bed.user.clone()), "{}", bed.name);
        let Taken::Replayed(row) = &taken[1] else {
            panic!("{}: {:?}", bed.name, taken[1]);
        };
        assert_eq!(row.id, first.id);
        let later = bed.store.take(&[again, other], NOW).await.unwrap();
        assert!(matches!(&later[0], Taken::Replayed(row) if row.id == first.id));
        assert_eq!(later[1], Taken::KeyReused);
        assert_eq!(bed.messages().len(), 1, "one job");
        let mut stranger = bed.push(Kind::Confirm, Target::All);
        stranger.user = UserRef::External("bob".to_owned());
        let mut locked = bed.push(Kind::Confirm, Target::All);
        locked.user = UserRef::Id(bed.user.clone());
        bed.store
            .change_user(&bed.tenant, &bed.user, Some(UserStatus::Locked), None, NOW)
            .await
            .unwrap()
            .unwrap();
        let refused = bed.store.take(&[stranger, locked], NOW).await.unwrap();
        assert_eq!(
            refused,
            [Taken::NoUser, Taken::UserInactive(UserStatus::Locked)]
        );
        assert_eq!(
            bed.events(),
            ["cancelled"],
            "the first; nothing of the refused"
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_with_one_idempotency_key_one_is_new_and_nobody_beside_them_is_lost() {
    for mut bed in beds("twins").await {
        for round in 0..5 {
            let calls = (0..16).map(|_| {
                let twin = NewPush {
                    idempotency: Some((format!("k{round}"), "h".to_owned())),
                    ..bed.push(Kind::Generic, Target::All)
                };
                // Whoever comes into the way takes the whole transaction down.
                let beside = bed.push(Kind::Generic, Target::All);
                let store = bed.store.clone();
                tokio::spawn(async move { store.take(&[twin, beside], NOW).await })
            });
            let calls: Vec<_> = calls.collect();
            let (mut new, mut made) = (0, std::collections::BTreeSet::new());
            for call in calls {
                let taken = call.await.unwrap().unwrap();
                match &taken[0] {
                    Taken::New(_) => new += 1,
                    Taken::Replayed(row) => {
                        made.insert(row.id.clone());
                    }
                    other => panic!("{}: {other:?}", bed.name),
                }
                assert_eq!(taken[1], Taken::New(bed.user.clone()), "{}", bed.name);
            }
            assert_eq!((new, made.len()), (1, 1), "{}", bed.name);
        }
        let sent: usize = bed
            .messages()
            .iter()
            .map(|message| Job::decode(message).unwrap().pushes.len())
            .sum();
        assert_eq!(sent, 5 * 17, "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_claimed_by_one_worker_and_taken_over_after_its_lease() {
    for mut bed in beds("claim").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        let mine = bed.claimed(&push, NOW).await;
        assert_eq!(mine.len(), 2, "{}", bed.name);
        assert!(mine.iter().all(|one| one.attempt == 1));
        assert!(bed.claimed(&push, NOW + LEASE - 1).await.is_empty());
        let over = bed.claimed(&push, NOW + LEASE).await;
        assert_eq!(over.len(), 2);
        assert!(over.iter().all(|one| one.attempt == 2));
        // The first worker comes back from the dead: its results are of an attempt that is no longer the last.
        let sent = DeliveryResult::Sent { provider_id: None };
        bed.store
            .record(&[result(&mine[0], sent.clone())], NOW + LEASE)
            .await
            .unwrap();
        assert_eq!(bed.states(&push).await, [DeliveryState::Sending; 2]);
        bed.store
            .record(
                &[result(&over[0], sent.clone()), result(&over[1], sent)],
                NOW + LEASE,
            )
            .await
            .unwrap();
        assert_eq!(bed.states(&push).await, [DeliveryState::Sent; 2]);
        assert_eq!(
            bed.store.push(&push).await.unwrap().unwrap().state,
            PushState::Pending
        );
        assert!(
            bed.claimed(&push, NOW + 2 * LEASE).await.is_empty(),
            "expired or sent: never again"
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(
    clippy::too_many_lines,
    reason = "one delivery, told from its first failure to its last"
)]
async fn a_retry_waits_is_claimed_by_its_attempt_and_recovered_when_its_message_is_lost() {
    for mut bed in beds("retry").await {
        let push = bed
            .taken(
                Kind::Confirm,
                Target::Devices {
                    devices: vec![bed.devices[0].clone()],
                },
            )
            .await;
        let mine = bed.claimed(&push, NOW).await;
        let later = DeliveryResult::Retry {
            after: 5_000,
            reason: "unavailable".to_owned(),
        };
        bed.store
            .record(&[result(&mine[0], later)], NOW)
            .await
            .unwrap();
        let sent = bed.messages();
        let [
            Message {
                route: Route::Later(tier, _),
                ..
            },
        ] = &sent[..]
        else {
            panic!("{sent:?}")
        };
        assert_eq!(tier.seconds, 5);
        let job = Job::decode(&sent[0]).unwrap();
        let wanted = Wanted {
            pushes: vec![],
            retries: job.retries,
        };
        let early = bed.store.claim(&wanted, NOW + 1_000, LEASE).await.unwrap();
        assert!(early.claimed.is_empty(), "{}: not due", bed.name);
        assert!(
            matches!(
                &bed.messages()[..],
                [Message {
                    route: Route::Later(..),
                    ..
                }]
            ),
            "sent back to wait"
        );
        let due = bed
            .store
            .claim(&wanted, NOW + 5_000, LEASE)
            .await
            .unwrap()
            .claimed;
        assert_eq!((due.len(), due[0].attempt), (1, 2));
        assert!(
            bed.store
                .claim(&wanted, NOW + 5_000, LEASE)
                .await
                .unwrap()
                .claimed
                .is_empty()
        );
        let later = DeliveryResult::Retry {
            after: 3_000,
            reason: "unavailable".to_owned(),
        };
        bed.store
            .record(&[result(&due[0], later)], NOW + 6_000)
            .await
            .unwrap();
        bed.messages();
        assert_eq!(
            bed.store.recover(NOW + 9_000).await.unwrap(),
            0,
            "its message may still come"
        );
        assert_eq!(bed.store.recover(NOW + 20_000).await.unwrap(), 1);
        let again = Job::decode(&bed.messages()[0]).unwrap();
        assert_eq!(again.retries[0].attempt, 2);
        let gone = DeliveryResult::Failed {
            reason: "unregistered".to_owned(),
            address_gone: Some(Some(NOW + 5)),
        };
        let wanted = Wanted {
            pushes: vec![],
            retries: again.retries,
        };
        let last = bed
            .store
            .claim(&wanted, NOW + 20_000, LEASE)
            .await
            .unwrap()
            .claimed;
        bed.store
            .record(&[result(&last[0], gone)], NOW + 21_000)
            .await
            .unwrap();
        let device = bed.store.device(&bed.devices[0]).await.unwrap().unwrap();
        assert_eq!(device.address_state.as_str(), "invalid");
        assert_eq!(
            device.state.as_str(),
            "active",
            "losing the address never kills the key"
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_registered_after_its_reported_death_stays() {
    for mut bed in beds("rereg").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        let mine = bed.claimed(&push, NOW).await;
        let fresh = Address {
            provider: Provider::Apns,
            token: Secret::new("aa"),
        };
        assert!(
            bed.store
                .set_address(&mine[0].device, &fresh, NOW + 50)
                .await
                .unwrap()
        );
        let gone = DeliveryResult::Failed {
            reason: "unregistered".to_owned(),
            address_gone: Some(Some(NOW + 10)),
        };
        bed.store
            .record(&[result(&mine[0], gone)], NOW + 60)
            .await
            .unwrap();
        let device = bed.store.device(&mine[0].device).await.unwrap().unwrap();
        assert_eq!(device.address_state.as_str(), "valid", "{}", bed.name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_wins_and_there_is_one_event_per_device_and_one_per_push() {
    for mut bed in beds("answer").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        bed.claimed(&push, NOW).await;
        bed.store
            .fetched(&bed.devices[0], &[&push], NOW + 1)
            .await
            .unwrap();
        let won = bed
            .answer(&push, Kind::Confirm, 0, true, "p0", NOW + 2)
            .await;
        assert!(
            matches!(
                &won,
                Answered::Counted {
                    state: PushState::Approved,
                    ..
                }
            ),
            "{}: {won:?}",
            bed.name
        );
        assert_eq!(
            bed.events(),
            ["approved", "device_answered", "device_withdrawn"]
        );
        assert_eq!(
            bed.answer(&push, Kind::Confirm, 0, true, "p0", NOW + 3)
                .await,
            won,
            "the same proof again"
        );
        let late = bed
            .answer(&push, Kind::Confirm, 1, false, "p1", NOW + 3)
            .await;
        assert!(matches!(
            late,
            Answered::Ended {
                state: PushState::Approved,
                ..
            }
        ));
        let other = bed
            .answer(&push, Kind::Confirm, 0, false, "p2", NOW + 3)
            .await;
        assert!(matches!(other, Answered::Ended { .. }));
        assert_eq!(bed.store.expire(NOW + 99_000).await.unwrap(), 0);
        assert!(
            bed.store
                .cancel(&bed.tenant, &push, "by_sender", NOW + 4)
                .await
                .unwrap()
                .is_none()
        );
        assert!(bed.events().is_empty(), "nothing more, ever");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_counts_once_though_the_phone_answers_before_its_record() {
    for mut bed in beds("early").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        let claimed = bed.claimed(&push, NOW).await;
        bed.answer(&push, Kind::Confirm, 0, true, "p0", NOW + 2)
            .await;
        bed.messages();
        let again = |claimed| {
            let again = DeliveryResult::Retry {
                after: 1_000,
                reason: "busy".to_owned(),
            };
            result(claimed, again)
        };
        let results: Vec<_> = claimed.iter().map(again).collect();
        for _ in 0..2 {
            bed.store.record(&results, NOW + 3).await.unwrap();
            let mut rows = bed.store.deliveries(&push).await.unwrap();
            rows.sort_by(|a, b| a.device.cmp(&b.device));
            let told: Vec<_> = rows.iter().map(|row| (row.state, row.attempts)).collect();
            assert_eq!(
                told,
                [(DeliveryState::Answered, 1), (DeliveryState::Withdrawn, 1)],
                "{}",
                bed.name
            );
        }
        assert!(bed.messages().is_empty(), "and nothing is sent again");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_races_another_and_the_expiry_and_one_wins() {
    for mut bed in beds("race").await {
        for round in 0..20 {
            let push = bed.taken(Kind::Confirm, Target::All).await;
            let (yes, no, expired) = tokio::join!(
                bed.answer(&push, Kind::Confirm, 0, true, "p0", NOW + 59_999),
                bed.answer(&push, Kind::Confirm, 1, false, "p1", NOW + 59_999),
                bed.store.expire(NOW + 60_000),
            );
            let counted = usize::from(matches!(yes, Answered::Counted { .. }))
                + usize::from(matches!(no, Answered::Counted { .. }));
            assert_eq!(
                counted + expired.unwrap(),
                1,
                "{} round {round}: {yes:?} {no:?}",
                bed.name
            );
            let ends = bed
                .events()
                .into_iter()
                .filter(|kind| !kind.starts_with("device_"))
                .count();
            assert_eq!(ends, 1);
        }
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_says_how_far_the_push_came_and_its_edge_is_exclusive() {
    for mut bed in beds("expire").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        let claimed = bed.claimed(&push, NOW).await;
        let sent = DeliveryResult::Sent {
            provider_id: Some("x".to_owned()),
        };
        bed.store
            .record(&[result(&claimed[0], sent)], NOW)
            .await
            .unwrap();
        bed.messages();
        assert_eq!(bed.store.next_deadline().await.unwrap(), Some(NOW + 60_000));
        assert_eq!(bed.store.expire(NOW + 59_999).await.unwrap(), 0);
        let late = bed
            .answer(&push, Kind::Confirm, 0, true, "p", NOW + 60_000)
            .await;
        assert_eq!(
            late,
            Answered::TooLate,
            "{}: judged at arrival, not by the sweep",
            bed.name
        );
        assert_eq!(bed.store.expire(NOW + 60_000).await.unwrap(), 1);
        assert_eq!(
            bed.events(),
            ["device_expired", "device_expired", "expired"]
        );
        assert_eq!(
            bed.store.push(&push).await.unwrap().unwrap().reason,
            "unopened"
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_push_counts_each_device_and_completes_with_the_last() {
    for mut bed in beds("generic").await {
        let push = bed.taken(Kind::Generic, Target::All).await;
        bed.claimed(&push, NOW).await;
        let first = bed
            .answer(&push, Kind::Generic, 0, true, "p0", NOW + 1)
            .await;
        assert!(
            matches!(
                first,
                Answered::Counted {
                    state: PushState::Pending,
                    ..
                }
            ),
            "{}: {first:?}",
            bed.name
        );
        assert_eq!(bed.events(), ["device_answered"]);
        assert!(matches!(
            bed.answer(&push, Kind::Generic, 0, true, "p0", NOW + 2)
                .await,
            Answered::Counted { .. }
        ));
        let last = bed
            .answer(&push, Kind::Generic, 1, true, "p1", NOW + 3)
            .await;
        assert!(matches!(
            last,
            Answered::Counted {
                state: PushState::Completed,
                ..
            }
        ));
        assert_eq!(bed.events(), ["completed", "device_answered"]);
        let half = bed.taken(Kind::Generic, Target::All).await;
        bed.claimed(&half, NOW).await;
        bed.answer(&half, Kind::Generic, 0, true, "p0", NOW + 1)
            .await;
        bed.events();
        assert_eq!(bed.store.expire(NOW + 60_000).await.unwrap(), 1);
        assert_eq!(bed.events(), ["completed", "device_expired"]);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preferred_device_is_asked_alone_and_the_others_on_its_hard_failure_or_after_the_time()
{
    for mut bed in beds("escalate").await {
        let target = Target::Preferred {
            escalate_after: Some(10_000),
        };
        bed.store
            .change_user(
                &bed.tenant,
                &bed.user,
                None,
                Some(bed.devices[1].as_str()),
                NOW,
            )
            .await
            .unwrap()
            .unwrap();
        let push = bed.taken(Kind::Confirm, target.clone()).await;
        let claimed = bed.claimed(&push, NOW).await;
        assert_eq!(
            claimed.iter().map(|one| &one.device).collect::<Vec<_>>(),
            [&bed.devices[1]],
            "{}",
            bed.name
        );
        assert!(bed.claimed(&push, NOW).await.is_empty());
        let device = bed.store.device(&bed.devices[0]).await.unwrap().unwrap();
        assert!(
            bed.store.prompts(&device, NOW).await.unwrap().is_empty(),
            "not asked yet"
        );
        let failed = DeliveryResult::Failed {
            reason: "rejected".to_owned(),
            address_gone: None,
        };
        bed.store
            .record(&[result(&claimed[0], failed)], NOW)
            .await
            .unwrap();
        assert_eq!(
            Job::decode(&bed.messages()[0]).unwrap().pushes,
            std::slice::from_ref(&push)
        );
        assert_eq!(bed.claimed(&push, NOW).await.len(), 1, "the other one");
        assert_eq!(bed.store.prompts(&device, NOW).await.unwrap().len(), 1);
        let timed = bed.taken(Kind::Confirm, target).await;
        bed.claimed(&timed, NOW).await;
        bed.messages();
        assert_eq!(bed.store.escalate_due(NOW + 9_999).await.unwrap(), 0);
        assert_eq!(bed.store.escalate_due(NOW + 10_000).await.unwrap(), 1);
        assert_eq!(bed.store.escalate_due(NOW + 10_000).await.unwrap(), 0);
        assert_eq!(bed.claimed(&timed, NOW + 10_000).await.len(), 1);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_device_a_push_fails_and_without_an_address_it_waits_to_be_fetched() {
    for mut bed in beds("nobody").await {
        bed.store
            .add_user(&bed.tenant, "bob", NOW)
            .await
            .unwrap()
            .unwrap();
        let mut new = bed.push(Kind::Confirm, Target::All);
        new.user = UserRef::External("bob".to_owned());
        bed.store
            .take(std::slice::from_ref(&new), NOW)
            .await
            .unwrap();
        bed.messages();
        assert!(bed.claimed(&new.id, NOW).await.is_empty());
        assert_eq!(bed.events(), ["failed"], "{}", bed.name);
        let row = bed.store.push(&new.id).await.unwrap().unwrap();
        assert_eq!(
            (row.state, row.reason.as_str()),
            (PushState::Failed, "no_devices")
        );
        let bob = bed
            .store
            .user_by_external(&bed.tenant, "bob")
            .await
            .unwrap()
            .unwrap();
        let quiet = bed
            .store
            .add_device(&bed.tenant, &bob.id, &phone(None), 1, NOW)
            .await
            .unwrap()
            .unwrap();
        let more = bed
            .store
            .add_device(&bed.tenant, &bob.id, &phone(None), 1, NOW)
            .await
            .unwrap();
        assert_eq!(more, Err(DeviceRefused::TooMany));
        let waiting = NewPush {
            id: PushId::fresh(NOW),
            ..new
        };
        bed.store
            .take(std::slice::from_ref(&waiting), NOW)
            .await
            .unwrap();
        assert!(bed.claimed(&waiting.id, NOW).await.is_empty());
        assert_eq!(bed.states(&waiting.id).await, [DeliveryState::Skipped]);
        let seen = bed.store.prompts(&quiet, NOW).await.unwrap();
        assert_eq!(seen.len(), 1);
        bed.store
            .fetched(&quiet.id, &[&waiting.id], NOW)
            .await
            .unwrap();
        assert_eq!(bed.states(&waiting.id).await, [DeliveryState::Fetched]);
        bed.end().await;
    }
}

/// Takes a process push whose link holds the token `th`.
async fn take_process(bed: &mut Bed, found: Definition) {
    let mut new = bed.push(Kind::Process, Target::All);
    new.process = Some(NewProcess {
        definition: found,
        parameters: json!({"amount": "5"}),
        max_duration: 300_000,
        token_hash: "th".to_owned(),
        not_before: Some(NOW + 3),
        not_after: Some(NOW + 60_000),
    });
    bed.store
        .take(std::slice::from_ref(&new), NOW)
        .await
        .unwrap();
    bed.messages();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_link_opens_once_and_the_child_ends_the_push() {
    for mut bed in beds("process").await {
        let definition = Definition {
            name: "onboard".to_owned(),
            version: 3,
            tag: Some("live".to_owned()),
            start_url: "https://bank.example/start".to_owned(),
        };
        assert!(
            bed.store
                .add_definition(&bed.tenant, &definition, NOW)
                .await
                .unwrap()
        );
        assert!(
            !bed.store
                .add_definition(&bed.tenant, &definition, NOW)
                .await
                .unwrap()
        );
        let found = bed
            .store
            .definition(&bed.tenant, "onboard", None, Some("live"))
            .await
            .unwrap()
            .unwrap();
        take_process(&mut bed, found).await;
        let not = async |token: &str, now| match bed.store.open_process(token, now).await.unwrap() {
            Opened::Not(link) => {
                let looked = bed.store.process_link(token, now).await.unwrap();
                assert_eq!(looked, link, "{}", bed.name);
                link
            }
            Opened::Started(_) => panic!("{}: {token} at {now} opened", bed.name),
        };
        assert_eq!(not("other", NOW).await, ProcessLink::Unknown);
        assert_eq!(not("th", NOW + 2).await, ProcessLink::Early(NOW + 3));
        assert_eq!(
            not("th", NOW + 60_000).await,
            ProcessLink::Spent,
            "late by 0 ms"
        );
        for _ in 0..3 {
            let ready = bed.store.process_link("th", NOW + 3).await.unwrap();
            assert!(
                matches!(ready, ProcessLink::Ready(_)),
                "{}: {ready:?}",
                bed.name
            );
        }
        let Opened::Started(started) = bed.store.open_process("th", NOW + 5).await.unwrap() else {
            panic!("{}", bed.name)
        };
        assert_eq!(
            (started.start_url.as_str(), &started.parameters["amount"]),
            ("https://bank.example/start", &json!("5"))
        );
        assert_eq!(started.push.expires_at, NOW + 5 + 300_000);
        assert_eq!(not("th", NOW + 6).await, ProcessLink::Spent);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_goes_on_and_ends_once_and_not_after_an_hour() {
    use InstanceState::{Active, EndedSuccess, Pending, Review, Terminated};
    for mut bed in beds("child").await {
        let definition = Definition {
            name: "onboard".to_owned(),
            version: 1,
            tag: None,
            start_url: "https://bank.example/start".to_owned(),
        };
        take_process(&mut bed, definition).await;
        let Opened::Started(started) = bed.store.open_process("th", NOW + 5).await.unwrap() else {
            panic!("{}", bed.name)
        };
        let (store, tenant, name) = (bed.store.clone(), bed.tenant.clone(), bed.name);
        let report = async |to, now| {
            let taken = store.report_instance(&tenant, &started.instance, to, now);
            let (changed, push) = taken.await.unwrap().unwrap();
            (
                changed,
                push.state,
                push.instance_state.unwrap(),
                push.expires_at,
            )
        };
        let opened = NOW + 5;
        let first = report(Pending, NOW + 6).await;
        assert_eq!(first, (false, PushState::Opened, Pending, opened + 300_000));
        let runs = report(Active, NOW + 6).await;
        assert_eq!(runs, (true, PushState::Opened, Active, opened + 300_000));
        let looked_at = report(Review, NOW + 100_000).await;
        assert_eq!(looked_at, (true, PushState::Opened, Review, NOW + 400_000));
        assert_eq!(
            report(Review, NOW + 100_001).await,
            (false, PushState::Opened, Review, NOW + 400_000)
        );
        let mut now = NOW + 100_001;
        for _ in 0..30 {
            now += 140_000;
            report(Active, now).await;
            report(Review, now).await;
        }
        let (_, _, _, over) = report(Review, opened + LONGEST_INSTANCE - 1).await;
        assert_eq!(over, opened + LONGEST_INSTANCE, "{name}: however often");
        let late = report(EndedSuccess, over).await;
        assert_eq!((late.0, late.1), (false, PushState::Opened), "{name}: late");
        assert!(bed.events().is_empty());
        let ended = report(Terminated, over - 1).await;
        assert_eq!(
            (ended.0, ended.1, ended.2),
            (true, PushState::Denied, Terminated)
        );
        assert_eq!(bed.events(), ["denied"]);
        for to in [EndedSuccess, Active, Terminated] {
            let again = report(to, over - 1).await;
            assert_eq!(
                (again.0, again.1, again.2),
                (false, PushState::Denied, Terminated)
            );
        }
        assert!(bed.events().is_empty(), "{}", name);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_05_wrong_codes_are_counted_by_user_over_all_pushes_and_the_fifth_ends_them() {
    for mut bed in beds("codes").await {
        let first = bed.taken(Kind::Confirm, Target::All).await;
        let second = bed.taken(Kind::Confirm, Target::All).await;
        let plain = bed.taken(Kind::Generic, Target::All).await;
        for push in [&first, &second, &first, &second] {
            bed.store
                .wrong_code(push, &bed.devices[0], NOW)
                .await
                .unwrap();
        }
        assert!(bed.events().is_empty(), "{}", bed.name);
        let right = bed.answer(&second, Kind::Confirm, 0, true, "p", NOW).await;
        assert!(matches!(right, Answered::Counted { .. }));
        bed.events();
        for _ in 0..4 {
            bed.store
                .wrong_code(&first, &bed.devices[0], NOW)
                .await
                .unwrap();
        }
        let third = bed.taken(Kind::Confirm, Target::All).await;
        assert!(
            bed.events().is_empty(),
            "a right one starts the count again, a new push does not"
        );
        bed.store
            .wrong_code(&third, &bed.devices[0], NOW)
            .await
            .unwrap();
        assert_eq!(bed.events(), ["failed", "failed"], "{}", bed.name);
        let late = bed
            .answer(&first, Kind::Confirm, 0, true, "p", NOW + 1)
            .await;
        assert!(matches!(
            late,
            Answered::Ended {
                state: PushState::Failed,
                ..
            }
        ));
        assert_eq!(
            bed.store.push(&plain).await.unwrap().unwrap().state,
            PushState::Accepted
        );
        let blocked = bed.push(Kind::Confirm, Target::All);
        let taken = bed
            .store
            .take(std::slice::from_ref(&blocked), NOW)
            .await
            .unwrap();
        assert_eq!(taken, [Taken::CodesBlocked(NOW + 900_000)]);
        let later = bed.store.take(&[blocked], NOW + 900_000).await.unwrap();
        assert!(matches!(later[..], [Taken::New(_)]));
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_leases_that_were_lost_are_found() {
    for mut bed in beds("lost").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        assert_eq!(
            bed.store.recover(NOW + 14_999).await.unwrap(),
            0,
            "{}",
            bed.name
        );
        assert_eq!(
            bed.store.recover(NOW + 15_000).await.unwrap(),
            1,
            "no worker has seen it"
        );
        assert_eq!(bed.store.recover(NOW + 15_000).await.unwrap(), 0);
        assert_eq!(
            Job::decode(&bed.messages()[0]).unwrap().pushes,
            std::slice::from_ref(&push)
        );
        bed.claimed(&push, NOW + 15_000).await;
        assert_eq!(
            bed.store.recover(NOW + 15_000 + LEASE - 1).await.unwrap(),
            0
        );
        assert_eq!(
            bed.store.recover(NOW + 15_000 + LEASE).await.unwrap(),
            2,
            "the worker died"
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_backwards_in_pages_and_can_be_narrowed() {
    for mut bed in beds("list").await {
        let mut all = Vec::new();
        for n in 0..5 {
            let mut new = bed.push(Kind::Confirm, Target::All);
            new.id = PushId::fresh(NOW + n);
            bed.store
                .take(std::slice::from_ref(&new), NOW)
                .await
                .unwrap();
            all.push(new.id);
        }
        bed.messages();
        bed.store
            .cancel(&bed.tenant, &all[4], "by_sender", NOW)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(bed.events(), ["cancelled"]);
        let page = Page {
            limit: 2,
            ..Page::default()
        };
        let first = bed.store.pushes(&bed.tenant, &page).await.unwrap();
        assert_eq!(
            first.iter().map(|p| &p.id).collect::<Vec<_>>(),
            [&all[4], &all[3]],
            "{}",
            bed.name
        );
        let page = Page {
            before: Some(all[3].clone()),
            state: Some(PushState::Accepted),
            user: Some(bed.user.clone()),
            limit: 10,
        };
        assert_eq!(bed.store.pushes(&bed.tenant, &page).await.unwrap().len(), 3);
        let page = Page {
            limit: 10,
            ..Page::default()
        };
        assert!(
            bed.store
                .pushes(&StoreId::fresh(1), &page)
                .await
                .unwrap()
                .is_empty()
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generic_push_waits_for_devices_that_it_has_not_reached_yet() {
    for mut bed in beds("early").await {
        let push = bed.taken(Kind::Generic, Target::All).await;
        let early = bed
            .answer(&push, Kind::Generic, 0, true, "p0", NOW + 1)
            .await;
        let open = matches!(&early, Answered::Counted { state, .. } if !state.is_terminal());
        assert!(open, "{}: {early:?}", bed.name);
        let claimed = bed.claimed(&push, NOW + 2).await;
        assert_eq!(claimed.len(), 1, "the other one is still asked");
        let last = bed
            .answer(&push, Kind::Generic, 1, true, "p1", NOW + 3)
            .await;
        assert!(matches!(
            last,
            Answered::Counted {
                state: PushState::Completed,
                ..
            }
        ));
        assert_eq!(
            bed.events(),
            ["completed", "device_answered", "device_answered"]
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_locked_is_not_asked_any_more() {
    for mut bed in beds("locked").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        bed.claimed(&push, NOW).await;
        bed.store
            .change_user(
                &bed.tenant,
                &bed.user,
                Some(UserStatus::Locked),
                None,
                NOW + 1,
            )
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            bed.events(),
            ["cancelled", "device_withdrawn", "device_withdrawn"],
            "{}",
            bed.name
        );
        let row = bed.store.push(&push).await.unwrap().unwrap();
        assert_eq!(
            (row.state, row.reason.as_str()),
            (PushState::Cancelled, "user_blocked")
        );
        assert!(
            bed.store
                .trusted_device(&bed.devices[0])
                .await
                .unwrap()
                .is_none()
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_comes_after_the_end_leaves_nothing_behind() {
    for mut bed in beds("late-fetch").await {
        let push = bed.taken(Kind::Confirm, Target::All).await;
        bed.answer(&push, Kind::Confirm, 0, true, "p0", NOW + 1)
            .await;
        bed.store
            .fetched(&bed.devices[1], &[&push], NOW + 2)
            .await
            .unwrap();
        assert_eq!(
            bed.states(&push).await,
            [DeliveryState::Answered],
            "{}",
            bed.name
        );
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_registered_again_is_the_same_device_with_its_new_address() {
    for bed in beds("same-key").await {
        let mut again = phone(Some("cc"));
        let first = bed
            .store
            .add_device(&bed.tenant, &bed.user, &again, 10, NOW)
            .await
            .unwrap()
            .unwrap();
        again.address = Some(Address {
            provider: Provider::Apns,
            token: Secret::new("aa"),
        });
        again.name = "New name".to_owned();
        let second = bed
            .store
            .add_device(&bed.tenant, &bed.user, &again, 10, NOW + 1)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (second.id, second.name.as_str()),
            (first.id, "New name"),
            "{}",
            bed.name
        );
        let former = bed.store.device(&bed.devices[0]).await.unwrap().unwrap();
        assert_eq!(
            former.address_state.as_str(),
            "invalid",
            "a token rings at one device"
        );
        bed.end().await;
    }
}
