//! How devices get in and out, one suite for both databases.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod databases;

use databases::{Left, close, databases, phone};
use shared::clock::Millis;
use shared::crypto::random_text;
use shared::domain::{CodeState, DeviceState, NoticeWord};
use shared::id::{StoreId, UserId};
use shared::store::{
    CodeRefused, Device, EnrolRefused, EnrolmentCode, Handover, NewCode, NewDevice, Store,
};
use std::collections::BTreeSet;

const NOW: Millis = 1_000_000;
const LIFE: Millis = 600_000;
const RP: &str = "payroll";

struct Bed {
    name: &'static str,
    left: Left,
    store: Store,
    tenant: StoreId,
    user: UserId,
}

async fn beds(test: &str) -> Vec<Bed> {
    let mut beds = Vec::new();
    for (name, db, left) in databases(test).await {
        let (handover, _) = Handover::channel();
        let store = Store::new(db, handover);
        let tenant = store.add_store("Acme", NOW).await.unwrap().id;
        let user = store.add_user(&tenant, "ada", NOW).await.unwrap().unwrap();
        beds.push(Bed {
            name,
            left,
            store,
            tenant,
            user,
        });
    }
    beds
}

fn device() -> NewDevice {
    phone(Some(&random_text::<16>()))
}

impl Bed {
    async fn code(
        &self,
        made_by: Option<&Device>,
        now: Millis,
    ) -> Result<EnrolmentCode, CodeRefused> {
        let new = NewCode {
            store: &self.tenant,
            user: &self.user,
            rp: RP,
            hash: &random_text::<16>(),
            made_by: made_by.map(|one| &one.id),
            expires_at: now + LIFE,
        };
        self.store.add_enrolment_code(&new, now).await.unwrap()
    }

    async fn enrol(&self, code: &EnrolmentCode, now: Millis) -> Result<Device, EnrolRefused> {
        self.store.enrol(code, &device(), 10, now).await.unwrap()
    }

    async fn change(&self, device: &Device, to: DeviceState, now: Millis) -> Option<Device> {
        let to = Some(to);
        self.store
            .change_device(device, to, None, now)
            .await
            .unwrap()
    }

    async fn devices(&self) -> Vec<Device> {
        self.store.devices(&self.tenant, &self.user).await.unwrap()
    }

    async fn end(self) {
        close(self.store.db().clone(), self.left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_counts_until_its_last_millisecond() {
    for bed in beds("code-time").await {
        let late = bed.code(None, NOW).await.unwrap();
        let end = NOW + LIFE;
        assert_eq!(late.state(end - 1), CodeState::Open);
        assert_eq!(late.state(end), CodeState::Expired);
        let refused = bed.enrol(&late, end).await;
        assert_eq!(refused, Err(EnrolRefused::Spent), "{}", bed.name);
        assert!(bed.enrol(&late, end - 1).await.is_ok(), "{}", bed.name);
        assert_eq!(bed.devices().await.len(), 1);
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_lets_nobody_in_for_the_policys_sake_is_unharmed() {
    for bed in beds("code-policy").await {
        let code = bed.code(None, NOW).await.unwrap();
        let refused = bed.store.enrol(&code, &device(), 0, NOW).await.unwrap();
        assert!(
            matches!(refused, Err(EnrolRefused::Device(_))),
            "{}",
            bed.name
        );
        let found = bed
            .store
            .enrolment_code(&bed.tenant, &bed.user, &code.id)
            .await
            .unwrap();
        assert_eq!(found.unwrap().state(NOW), CodeState::Open, "{}", bed.name);
        bed.enrol(&code, NOW).await.unwrap();
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devices_codes_die_with_its_trust_also_when_both_happen_at_once() {
    for bed in beds("code-maker").await {
        for to in [DeviceState::Blocked, DeviceState::Revoked] {
            let admin = bed.code(None, NOW).await.unwrap();
            let maker = bed.enrol(&admin, NOW).await.unwrap();
            let before = bed.code(Some(&maker), NOW).await.unwrap();
            let (raced, changed) =
                tokio::join!(bed.code(Some(&maker), NOW), bed.change(&maker, to, NOW + 1));
            assert_eq!(changed.unwrap().state, to);
            for code in [Ok(before), raced].into_iter().flatten() {
                let refused = bed.enrol(&code, NOW + 2).await;
                assert_eq!(refused, Err(EnrolRefused::Spent), "{} {to}", bed.name);
            }
            let none = bed.code(Some(&maker), NOW + 2).await;
            assert_eq!(none, Err(CodeRefused::MakerGone), "{} {to}", bed.name);
        }
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_active_gets_no_new_address() {
    for bed in beds("address-state").await {
        let code = bed.code(None, NOW).await.unwrap();
        let one = bed.enrol(&code, NOW).await.unwrap();
        let address = device().address.unwrap();
        let set = async |now| bed.store.set_address(&one.id, &address, now).await.unwrap();
        assert!(set(NOW).await, "{}", bed.name);
        for state in ["pending_binding", "blocked", "revoked"] {
            static FORCE: shared::store::db::Statement =
                shared::store::db::Statement::new("UPDATE devices SET state = $2 WHERE id = $1");
            let args = [
                shared::store::db::Arg::Text(one.id.as_str()),
                shared::store::db::Arg::Text(state),
            ];
            bed.store.db().write(&FORCE, &args).await.unwrap();
            assert!(!set(NOW + 1).await, "{} {state}", bed.name);
            let trusted = bed.store.trusted_device(&one.id).await.unwrap();
            assert_eq!(trusted, None, "{} {state}", bed.name);
        }
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_any_more_is_forgotten_after_thirty_days() {
    for bed in beds("old-codes").await {
        let first = bed.enrol(&bed.code(None, NOW).await.unwrap(), NOW).await;
        let first = first.unwrap();
        let code = bed.code(None, NOW).await.unwrap();
        bed.enrol(&code, NOW).await.unwrap();
        let month = 30 * 24 * 3_600_000;
        let left = async || {
            let codes = bed.store.enrolment_codes(&bed.tenant, &bed.user);
            let notices = bed.store.notices(&first.id);
            (codes.await.unwrap().len(), notices.await.unwrap().len())
        };
        bed.store.recover(NOW + month).await.unwrap();
        assert_eq!(left().await, (2, 1), "{}", bed.name);
        bed.store.recover(NOW + LIFE + month + 1).await.unwrap();
        assert_eq!(left().await, (0, 0), "{}", bed.name);
        assert_eq!(bed.devices().await.len(), 2, "{}", bed.name);
        bed.end().await;
    }
}

/// A walk over everything that can happen to codes and devices, beside a model of who was let in by whom.
#[tokio::test(flavor = "multi_thread")]
async fn must_07_40_no_walk_leads_to_an_active_device_without_a_code_or_an_admin_act() {
    for bed in beds("device-walk").await {
        let (mut codes, mut let_in, mut seed) = (Vec::new(), BTreeSet::new(), 7_u64);
        let (mut blocked, mut used) = (BTreeSet::new(), BTreeSet::new());
        for step in 0..400 {
            let now = NOW + step * 1_000;
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let dice = usize::try_from(seed >> 33).unwrap();
            let devices = bed.devices().await;
            let some = devices.get(dice / 16 % devices.len().max(1)).cloned();
            let a_code: Option<EnrolmentCode> = codes.get(dice / 16 % codes.len().max(1)).cloned();
            match (dice % 8, some, a_code) {
                (0, _, _) => codes.extend(bed.code(None, now).await),
                (1, Some(maker), _) => codes.extend(bed.code(Some(&maker), now).await),
                (2 | 3, _, Some(code)) => {
                    if let Ok(device) = bed.enrol(&code, now).await {
                        assert!(used.insert(code.id.clone()), "{}: used twice", bed.name);
                        assert!(code.expires_at > now, "{}: too old", bed.name);
                        let trusted = code.made_by.as_ref().is_none_or(|maker| {
                            devices
                                .iter()
                                .any(|one| one.id == *maker && one.state == DeviceState::Active)
                        });
                        assert!(trusted, "{}: its maker is gone", bed.name);
                        let_in.insert(device.id);
                    }
                }
                (4, Some(one), _) if one.state == DeviceState::Active => {
                    bed.change(&one, DeviceState::Blocked, now).await.unwrap();
                    blocked.insert(one.id);
                }
                // The admin act that brings a device back.
                (5, Some(one), _) if one.state == DeviceState::Blocked => {
                    bed.change(&one, DeviceState::Active, now).await.unwrap();
                    blocked.remove(&one.id);
                }
                (6, Some(one), _) => {
                    let address = device().address.unwrap();
                    let set = bed.store.set_address(&one.id, &address, now).await.unwrap();
                    assert_eq!(set, one.state == DeviceState::Active, "{}", bed.name);
                }
                (7, Some(one), _) if one.state != DeviceState::Revoked && step % 3 == 0 => {
                    bed.change(&one, DeviceState::Revoked, now).await.unwrap();
                    blocked.insert(one.id);
                }
                (7, _, Some(code)) => {
                    bed.store.revoke_enrolment_code(&code, now).await.unwrap();
                }
                _ => {}
            }
            let expected: BTreeSet<_> = let_in.difference(&blocked).cloned().collect();
            let active = bed.devices().await.into_iter();
            let active = active.filter(|one| one.state == DeviceState::Active);
            let active: BTreeSet<_> = active.map(|one| one.id).collect();
            assert_eq!(active, expected, "{} step {step}", bed.name);
        }
        assert!(let_in.len() > 5, "{}: {}", bed.name, let_in.len());
        bed.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn must_40_a_notice_is_written_with_the_change_it_tells() {
    for bed in beds("notices").await {
        let first = bed.code(None, NOW).await.unwrap();
        let first = bed.enrol(&first, NOW).await.unwrap();
        let second = bed.code(None, NOW).await.unwrap();
        let second = bed.enrol(&second, NOW + 1).await.unwrap();
        let words = async || -> Vec<NoticeWord> {
            let notices = bed.store.notices(&first.id).await.unwrap();
            notices.iter().map(|one| one.what).collect()
        };
        assert_eq!(words().await, [NoticeWord::Added], "{}", bed.name);
        // A change that is refused tells nothing.
        let stale = Device {
            state: DeviceState::Blocked,
            ..second.clone()
        };
        let refused = bed.change(&stale, DeviceState::Active, NOW + 2).await;
        assert_eq!(refused, None);
        assert_eq!(words().await.len(), 1, "{}", bed.name);
        bed.change(&second, DeviceState::Revoked, NOW + 3)
            .await
            .unwrap();
        let both = [NoticeWord::Revoked, NoticeWord::Added];
        assert_eq!(words().await, both, "{}", bed.name);
        let gone = bed.store.notices(&second.id).await.unwrap();
        assert_eq!(gone, [], "{}: the revoked one is told nothing", bed.name);
        bed.end().await;
    }
}
