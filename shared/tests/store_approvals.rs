//! Approvals by several people, one suite for both databases: on random timelines, one after the other and all at once, there is one outcome, the
//! one that the arithmetic gives, told once; and nobody is left with an open prompt.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;
mod samples;

use databases::{Left, close, databases, key, phone};
use futures_util::future::join_all;
use shared::clock::Millis;
use shared::domain::approval::{Terms as Counting, outcome};
use shared::domain::{
    ApprovalState, Content, Kind, OnDenial, OpenPrompts, PushState, Quorum, Rules, Standing,
};
use shared::id::{ApprovalId, DeviceId, KeyId, PushId, StoreId, UserId};
use shared::message::Route;
use shared::store::db::{Arg, Statement};
use shared::store::{
    Action, Answer, Cancelled, Committed, Consumed, Handover, NewApproval, NewPush, SealedPolicy,
    Store, Taken, TakenApproval, USABLE, UserRef, Wanted,
};
use std::collections::{BTreeMap, BTreeSet};

const NOW: Millis = 1_000_000;
const RP: &str = "payroll";
const PEOPLE: usize = 6;
const SECOND: Millis = 1_000;

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    committed: Committed,
    tenant: StoreId,
    people: Vec<(UserId, DeviceId)>,
    /// Nobody can ask this one: there is no device.
    deviceless: UserId,
}

async fn beds(test: &str) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, committed) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let mut people = Vec::new();
        for n in 0..PEOPLE {
            let user = store.add_user(&tenant, &format!("user-{n}"), NOW).await;
            let user = user.unwrap().unwrap();
            let device = phone(None);
            let device = store.add_device(&tenant, &user, &device, 10, NOW).await;
            people.push((user, device.unwrap().unwrap().id));
        }
        let deviceless = store.add_user(&tenant, "nobody", NOW).await;
        let deviceless = deviceless.unwrap().unwrap();
        let rules = Rules {
            max_prompts: 1_000_000,
            open_prompts: OpenPrompts::Many,
            cooldown: 0,
            fraud_lock: 0,
            ..Rules::default()
        };
        let sealed = SealedPolicy {
            rules,
            name: "p".to_owned(),
            apns: None,
            fcm: None,
        };
        let set = store.put_push_policy(&tenant, RP, sealed, NOW);
        set.await.unwrap();
        beds.push(Bed {
            name,
            left,
            store,
            committed,
            tenant,
            people,
            deviceless,
        });
    }
    beds
}

/// What a member comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Approve,
    Deny,
    Fraud,
    Expire,
    Cancel,
    Fail,
}

impl Step {
    fn standing(self) -> Standing {
        match self {
            Self::Approve => Standing::Approved,
            Self::Deny => Standing::Denied,
            Self::Fraud => Standing::Fraud,
            Self::Expire => Standing::Expired,
            Self::Cancel => Standing::Cancelled,
            Self::Fail => Standing::Failed,
        }
    }
}

/// Steps of members, and whether the sender takes all of it back before one of them.
#[derive(Debug, Clone)]
struct Timeline {
    steps: Vec<Step>,
    required: usize,
    on_denial: OnDenial,
    cancelled_at: Option<usize>,
}

/// A small generator: the same timelines every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n as u64).unwrap()
    }

    fn timeline(&mut self) -> Timeline {
        let n = 2 + self.below(PEOPLE - 2);
        let mut steps: Vec<_> = (0..n)
            .map(|_| match self.below(10) {
                0..=4 => Step::Approve,
                5 => Step::Deny,
                6 => Step::Fraud,
                7 => Step::Expire,
                8 => Step::Cancel,
                _ => Step::Fail,
            })
            .collect();
        // One of each timeline at most: there is one user without a device.
        let mut failing = steps.iter_mut().filter(|step| **step == Step::Fail);
        failing.next();
        failing.for_each(|step| *step = Step::Deny);
        Timeline {
            required: 1 + self.below(n),
            on_denial: OnDenial::ALL[self.below(OnDenial::ALL.len())],
            cancelled_at: (self.below(5) == 0).then(|| self.below(n)),
            steps,
        }
    }
}

impl Timeline {
    fn counting(&self) -> Counting {
        Counting {
            required: self.required,
            on_denial: self.on_denial,
        }
    }

    /// What it comes to when the steps are made in this order.
    fn decision(&self, order: &[usize], cancelled_at: Option<usize>) -> (ApprovalState, String) {
        let mut members = vec![Standing::Open; self.steps.len()];
        for (at, member) in order.iter().enumerate() {
            if cancelled_at == Some(at) {
                return (ApprovalState::Cancelled, "by_sender".to_owned());
            }
            members[*member] = self.steps[*member].standing();
            if let Some((state, reason)) = outcome(self.counting(), &members) {
                return (state, reason.to_owned());
            }
        }
        panic!("everybody has answered: {self:?}")
    }
}

fn orders(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (n, first) in of.iter().enumerate() {
        let mut rest = of.to_vec();
        rest.remove(n);
        for mut order in orders(&rest) {
            order.insert(0, *first);
            all.push(order);
        }
    }
    all
}

impl Bed {
    fn member(&self, user: &UserId, expires_at: Millis) -> NewPush {
        let content = Content {
            approval: Some(Quorum { required: 2, of: 3 }),
            ..samples::content(Kind::Confirm, "Pay")
        };
        NewPush {
            user: UserRef::Id(user.clone()),
            expires_at,
            ..samples::push(&self.tenant, content, NOW)
        }
    }

    fn approval(&self, required: usize, users: &[(&UserId, Millis)]) -> NewApproval {
        let id = ApprovalId::fresh(NOW);
        let mut members: Vec<_> = users
            .iter()
            .map(|(user, expires_at)| {
                let mut member = self.member(user, *expires_at);
                member.terms.approval = Some(id.clone());
                member
            })
            .collect();
        let mut ids: Vec<_> = members.iter().map(|member| member.id.clone()).collect();
        ids.sort();
        for (member, id) in members.iter_mut().zip(ids) {
            member.id = id;
        }
        NewApproval {
            id,
            store: self.tenant.clone(),
            rp: RP.to_owned(),
            required: i64::try_from(required).unwrap(),
            on_denial: OnDenial::Continue,
            requested_by: None,
            idempotency: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
            key: KeyId::fresh(NOW),
            created_at: NOW,
            expires_at: NOW + 120 * SECOND,
            members,
        }
    }

    /// One for the first `n` people.
    fn plain(&self, required: usize, n: usize) -> NewApproval {
        let users: Vec<_> = self.people[..n]
            .iter()
            .map(|(user, _)| (user, NOW + 120 * SECOND))
            .collect();
        self.approval(required, &users)
    }

    async fn take(&self, new: &NewApproval) {
        let taken = self.store.take_approval(new, NOW).await.unwrap();
        assert_eq!(taken, TakenApproval::New, "{}", self.name);
    }

    async fn answer(&self, push: &PushId, person: usize, step: Step, now: Millis) {
        let key = key();
        let answer = Answer {
            push,
            kind: Kind::Confirm,
            device: &self.people[person].1,
            approves: step == Step::Approve,
            reason: match step {
                Step::Approve => "user_approved",
                Step::Fraud => "fraud_reported",
                _ => "user_declined",
            },
            verified: false,
            proof_hash: push.as_str(),
            proof: "p",
            key: &key,
        };
        self.store.answer(&answer, now).await.unwrap();
    }

    async fn step(&self, new: &NewApproval, member: usize, step: Step, now: Millis) {
        let push = &new.members[member].id;
        match step {
            Step::Approve | Step::Deny | Step::Fraud => {
                self.answer(push, member, step, now).await;
            }
            Step::Expire => {
                self.store.expire(now).await.unwrap();
            }
            Step::Cancel => {
                let cancelled = self.store.cancel(&self.tenant, push, "by_sender", now);
                cancelled.await.unwrap();
            }
            Step::Fail => {
                let wanted = Wanted {
                    pushes: vec![push.clone()],
                    ..Wanted::default()
                };
                self.store.claim(&wanted, now, 40 * SECOND).await.unwrap();
            }
        }
    }

    /// An approval whose members end as the timeline says, the first at `NOW` plus one second and so on.
    async fn begin(&self, line: &Timeline) -> NewApproval {
        let users: Vec<_> = line
            .steps
            .iter()
            .enumerate()
            .map(|(n, step)| {
                let user = match step {
                    Step::Fail => &self.deviceless,
                    _ => &self.people[n].0,
                };
                let at = NOW + SECOND * (1 + i64::try_from(n).unwrap());
                let late = NOW + 500 * SECOND;
                (user, if *step == Step::Expire { at } else { late })
            })
            .collect();
        let mut new = self.approval(line.required, &users);
        new.on_denial = line.on_denial;
        self.take(&new).await;
        new
    }

    /// The ends that were told since the last call, by what they are about.
    fn told(&mut self) -> BTreeMap<String, Vec<String>> {
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for class in &mut self.committed {
            while let Ok(more) = class.try_recv() {
                for message in more {
                    if !matches!(message.route, Route::Status(_)) {
                        continue;
                    }
                    for event in shared::event::decode(&message).unwrap() {
                        if event.is_verdict() {
                            let about = told.entry(event.subject.to_string()).or_default();
                            about.push(event.kind);
                        }
                    }
                }
            }
        }
        told
    }

    /// There is one outcome, told once, and no member is open. Gives it, and the members that ended by themselves.
    async fn settled(&mut self, new: &NewApproval) -> ((ApprovalState, String), Vec<usize>) {
        let row = self.store.approval(&new.id).await.unwrap().unwrap();
        assert!(row.ended_at.is_some(), "{}: {row:?}", self.name);
        let late = NOW + 1_000 * SECOND;
        let left = self.store.settle_due(late).await.unwrap();
        assert_eq!(left, 0, "{}: every promise was kept", self.name);
        let told = self.told();
        let kind = format!("countersign.approval.{}.v1", row.state);
        assert_eq!(told[new.id.as_str()], [kind], "{}", self.name);
        let members = self.store.members(&new.id).await.unwrap();
        let mut by_itself = Vec::new();
        for (n, member) in members.iter().enumerate() {
            assert_eq!(member.id, new.members[n].id);
            assert!(member.state.is_terminal(), "{}: {member:?}", self.name);
            let kind = format!("countersign.push.{}.v1", member.state);
            assert_eq!(told[member.id.as_str()], [kind], "{}", self.name);
            if !matches!(member.reason.as_str(), "decided" | "approval_cancelled") {
                by_itself.push(n);
            }
        }
        ((row.state, row.reason), by_itself)
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_two_hundred_random_timelines_there_is_one_outcome_and_it_is_that_of_the_arithmetic() {
    for mut bed in beds("approval-lines").await {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for n in 0..200 {
            let line = dice.timeline();
            let all: Vec<_> = (0..line.steps.len()).collect();
            let new = bed.begin(&line).await;
            let at = |member: usize| NOW + SECOND * (1 + i64::try_from(member).unwrap());
            if n % 2 == 0 {
                for member in &all {
                    if line.cancelled_at == Some(*member) {
                        let cancelled = bed.store.cancel_approval(&new.id, at(*member) - 1);
                        cancelled.await.unwrap();
                    }
                    bed.step(&new, *member, line.steps[*member], at(*member))
                        .await;
                }
                let (came, _) = bed.settled(&new).await;
                let wanted = line.decision(&all, line.cancelled_at);
                assert_eq!(came, wanted, "{} {line:?}", bed.name);
                seen.insert(came.0.to_string());
                continue;
            }
            let steps = all.iter().map(|member| {
                let (bed, new, line) = (&bed, &new, &line);
                async move {
                    bed.step(new, *member, line.steps[*member], at(*member))
                        .await;
                }
            });
            let cancel = async {
                if line.cancelled_at.is_some() {
                    let cancelled = bed.store.cancel_approval(&new.id, NOW + 1);
                    cancelled.await.unwrap();
                }
            };
            tokio::join!(join_all(steps), cancel);
            let (came, by_itself) = bed.settled(&new).await;
            let told = format!("{} {line:?} {by_itself:?} {came:?}", bed.name);
            if came.1 == "by_sender" {
                assert!(line.cancelled_at.is_some(), "{told}");
            } else {
                let some_order = orders(&by_itself).iter().any(|order| {
                    let mut members = vec![Standing::Open; line.steps.len()];
                    let first = order.iter().find_map(|member| {
                        members[*member] = line.steps[*member].standing();
                        outcome(line.counting(), &members)
                    });
                    first.is_some_and(|(state, reason)| (state, reason) == (came.0, &came.1))
                });
                assert!(some_order, "{told}");
            }
            seen.insert(came.0.to_string());
        }
        assert_eq!(seen.len(), 5, "every way it can end was met: {seen:?}");
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_approve_at_the_same_moment_are_both_counted() {
    for mut bed in beds("approval-twins").await {
        for _ in 0..40 {
            let new = bed.plain(2, 3);
            bed.take(&new).await;
            let answers = (0..3).map(|n| bed.step(&new, n, Step::Approve, NOW + SECOND));
            join_all(answers).await;
            let (came, _) = bed.settled(&new).await;
            assert_eq!(came.0, ApprovalState::Approved, "{}", bed.name);
        }
        bed.end().await;
    }
}

#[tokio::test]
async fn nobody_is_asked_unless_all_can_be_and_one_key_asks_once() {
    for mut bed in beds("approval-whole").await {
        let unknown = UserId::fresh(NOW);
        let late = NOW + 120 * SECOND;
        let new = bed.approval(1, &[(&bed.people[0].0, late), (&unknown, late)]);
        let taken = bed.store.take_approval(&new, NOW).await.unwrap();
        assert_eq!(taken, TakenApproval::Refused(1, Taken::NoUser));
        assert_eq!(bed.store.approval(&new.id).await.unwrap(), None);
        assert!(bed.store.push(&new.members[0].id).await.unwrap().is_none());

        let with = |hash: &str| NewApproval {
            idempotency: Some(("order-7".to_owned(), hash.to_owned())),
            ..bed.plain(2, 2)
        };
        let (one, two) = (with("h"), with("h"));
        let taken = tokio::join!(
            bed.store.take_approval(&one, NOW),
            bed.store.take_approval(&two, NOW)
        );
        let taken = [taken.0.unwrap(), taken.1.unwrap()];
        assert_eq!(
            taken
                .iter()
                .filter(|one| **one == TakenApproval::New)
                .count(),
            1,
            "{} {taken:?}",
            bed.name
        );
        let again = bed.store.take_approval(&with("h"), NOW).await.unwrap();
        assert!(matches!(again, TakenApproval::Replayed(_)), "{again:?}");
        let other = bed.store.take_approval(&with("other"), NOW).await.unwrap();
        assert_eq!(other, TakenApproval::KeyReused);
        let all = bed.store.approvals(&bed.tenant, None, None, 10).await;
        assert_eq!(all.unwrap().len(), 1);
        bed.told();
        bed.end().await;
    }
}

#[tokio::test]
async fn who_is_suppressed_counts_as_ended_and_may_end_it_all_at_once() {
    for mut bed in beds("approval-quiet").await {
        let rules = Rules {
            max_prompts: 1,
            open_prompts: OpenPrompts::Many,
            ..Rules::default()
        };
        let sealed = SealedPolicy {
            rules,
            name: "p".to_owned(),
            apns: None,
            fcm: None,
        };
        let set = bed.store.put_push_policy(&bed.tenant, RP, sealed, NOW);
        set.await.unwrap();
        let open = bed.plain(2, 2);
        bed.take(&open).await;
        let new = bed.plain(2, 3);
        bed.take(&new).await;
        let ((state, reason), _) = bed.settled(&new).await;
        let came = (state, reason.as_str());
        assert_eq!(
            came,
            (ApprovalState::Failed, "too_few_left"),
            "{}",
            bed.name
        );
        let row = bed.store.approval(&open.id).await.unwrap().unwrap();
        assert_eq!(row.state, ApprovalState::Pending, "{}", bed.name);
        bed.end().await;
    }
}

/// A process of the release before this one ends pushes and promises nothing.
#[tokio::test]
async fn an_end_without_a_promise_is_counted_when_the_time_is_over() {
    static OLD: Statement = Statement::new(
        "UPDATE pushes SET state = 'denied', reason = 'user_declined', ended_at = $2 WHERE id = $1",
    );
    for mut bed in beds("approval-old").await {
        let new = bed.plain(2, 2);
        bed.take(&new).await;
        let args = [
            Arg::Text(new.members[0].id.as_str()),
            Arg::Int(NOW + SECOND),
        ];
        bed.store.db().write(&OLD, &args).await.unwrap();
        let early = bed.store.settle_overdue(new.expires_at).await.unwrap();
        assert_eq!(early, 0, "{}", bed.name);
        let late = new.expires_at + 11 * SECOND;
        assert_eq!(bed.store.settle_overdue(late).await.unwrap(), 1);
        let row = bed.store.approval(&new.id).await.unwrap().unwrap();
        assert_eq!(row.state, ApprovalState::Denied, "{}", bed.name);
        let members = bed.store.members(&new.id).await.unwrap();
        assert_eq!(members[1].reason, "decided");
        bed.told();
        bed.end().await;
    }
}

#[tokio::test]
async fn an_approval_is_used_once_and_its_members_not_at_all() {
    for mut bed in beds("approval-use").await {
        let new = bed.plain(2, 3);
        bed.take(&new).await;
        let at = NOW + SECOND;
        let nothing = Action::default();
        let pending = bed.store.approval(&new.id).await.unwrap().unwrap();
        let early = bed.store.consume_approval(&pending, &nothing, at).await;
        assert_eq!(early.unwrap(), Consumed::NotApproved);
        for member in [0, 2] {
            bed.step(&new, member, Step::Approve, at).await;
        }
        let ((state, _), by_itself) = bed.settled(&new).await;
        assert_eq!(
            (state, by_itself),
            (ApprovalState::Approved, vec![0, 2]),
            "{}",
            bed.name
        );
        let member = bed.store.push(&new.members[0].id).await.unwrap().unwrap();
        assert_eq!(member.state, PushState::Approved);
        let of = bed.store.consume(&member, &nothing, at).await.unwrap();
        assert_eq!(of, Consumed::OfApproval(new.id.clone()));
        let row = bed.store.approval(&new.id).await.unwrap().unwrap();
        let late = bed.store.consume_approval(&row, &nothing, at + USABLE);
        assert_eq!(late.await.unwrap(), Consumed::TooLate);
        let used = join_all((0..4).map(|_| bed.store.consume_approval(&row, &nothing, at))).await;
        let used: Vec<_> = used.into_iter().map(Result::unwrap).collect();
        let now = used.iter().filter(|one| **one == Consumed::Now(at)).count();
        assert_eq!(now, 1, "{} {used:?}", bed.name);
        let after = bed.store.cancel_approval(&new.id, at).await.unwrap();
        assert!(matches!(after, Some(Cancelled::Ended(_))), "{after:?}");
        bed.end().await;
    }
}
