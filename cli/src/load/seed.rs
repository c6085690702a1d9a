//! A store with users, each with one device, and a policy that leads to the simulated APNs.

use super::deployment::{Deployment, failed};
use super::request::token;
use crate::roles::open_database;
use anyhow::{Context as _, Result, anyhow};
use shared::clock::{Clock as _, SystemClock};
use shared::crypto::{DeviceKey, ServerSecret, content_hash, random_text};
use shared::domain::{
    ApnsCredential, Content, FcmCredential, Field, Kind, OpenPrompts, Provider, Rules, Target,
};
use shared::id::{PushId, StoreId, UserId};
use shared::message::Lane;
use shared::secret::Secret;
use shared::store::{
    Address, Handover, NewDevice, NewPush, NewRow, PushPolicy, SealedPolicy, Store, Terms, UserRef,
};
use simulator::Gateway;
use simulator::phone::Phone;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// The relying party.
pub const RP: &str = "payroll";
/// How many users are added side by side: their commits are grouped.
const WRITERS: usize = 12;

/// What was planted.
pub struct Seed {
    /// The store.
    pub tenant: StoreId,
    /// Its users.
    pub users: Vec<UserId>,
    /// An API key for everything.
    pub key: Secret,
}

/// The way to the simulated APNs.
pub fn apns(gateway: &Gateway) -> ApnsCredential {
    let key = gateway.apns_key();
    ApnsCredential {
        team_id: key.team_id,
        key_id: key.key_id,
        topic: key.topic,
        private_key: key.p8,
        endpoint: gateway.apns_url().to_owned(),
    }
}

/// The way to the simulated FCM.
pub fn fcm(gateway: &Gateway) -> FcmCredential {
    FcmCredential {
        service_account: gateway.service_account_json(),
        endpoint: gateway.fcm_url().to_owned(),
    }
}

async fn add_user(
    store: &Store,
    tenant: &StoreId,
    key: DeviceKey,
    provider: Provider,
    n: usize,
) -> Result<UserId> {
    let now = SystemClock.now();
    let user = store
        .add_user(tenant, &format!("user-{n}"), now)
        .await?
        .context("a user exists already")?;
    let platform = match provider {
        Provider::Apns => "ios",
        Provider::Fcm => "android",
    };
    let device = NewDevice {
        rp: RP.to_owned(),
        name: "Phone".to_owned(),
        platform: platform.to_owned(),
        key,
        address: Some(Address {
            provider,
            token: Secret::new(token(provider, n)),
        }),
    };
    store
        .add_device(tenant, &user, &device, 10, now)
        .await?
        .map_err(|refused| anyhow!("a device was refused: {refused:?}"))?;
    Ok(user)
}

/// Plants it.
pub async fn plant(
    deployment: &Deployment,
    gateway: &Gateway,
    provider: Provider,
    users: usize,
) -> Result<Seed> {
    let db = open_database(&deployment.settings.database_url)
        .await
        .map_err(failed)?;
    let store = Store::new(db, Handover::channel().0);
    let secret = ServerSecret::new(&deployment.settings.secret).context("the secret")?;
    let now = SystemClock.now();
    let tenant = store.add_store("Bench", now).await?.id;
    let key = secret.api_key();
    store
        .add_key(Some(&tenant), &key.hash, &["*".to_owned()], "bench", now)
        .await?;
    let seal = |provider, text: String| {
        let place = PushPolicy::place(&tenant, RP, provider);
        Some(secret.seal(&place, &Secret::new(text)))
    };
    let sealed = SealedPolicy {
        // Few users stand for many.
        rules: Rules {
            max_prompts: 1_000_000,
            open_prompts: OpenPrompts::Many,
            cooldown: 0,
            ..Rules::default()
        },
        name: "Simulated".to_owned(),
        apns: seal(Provider::Apns, serde_json::to_string(&apns(gateway))?),
        fcm: seal(Provider::Fcm, serde_json::to_string(&fcm(gateway))?),
    };
    store.put_push_policy(&tenant, RP, sealed, now).await?;
    // Nobody answers by these devices, so one key serves them all.
    let phone = Phone::new(provider, "Phone");
    let device_key: DeviceKey = serde_json::from_value(phone.public_jwk())?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, tenant, next) = (store.clone(), tenant.clone(), Arc::clone(&next));
        let device_key = device_key.clone();
        writers.spawn(async move {
            let mut added = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= users {
                    return anyhow::Ok(added);
                }
                added.push(add_user(&store, &tenant, device_key.clone(), provider, n).await?);
            }
        });
    }
    let mut all = Vec::with_capacity(users);
    while let Some(added) = writers.join_next().await {
        all.extend(added??);
    }
    store.db().close().await;
    Ok(Seed {
        tenant,
        users: all,
        key: key.text,
    })
}

impl Seed {
    /// The `n`th push as line `line` of a batch.
    pub fn row(&self, n: usize, line: usize) -> NewRow {
        let push = self.push(n, Lane::Bulk);
        let mut content = push.content;
        content.kind = Kind::Generic;
        NewRow {
            line: i64::try_from(line).unwrap_or(i64::MAX),
            key: None,
            hash: "bench".to_owned(),
            id: push.id,
            user: push.user,
            content_hash: content_hash(&content),
            content,
            target: push.target,
            nonce: push.nonce,
            lifetime: push.expires_at - push.created_at,
            correlation_id: None,
            bytes: 200,
        }
    }

    /// The `n`th push: every second one `confirm`, the others `generic`.
    pub fn push(&self, n: usize, lane: Lane) -> NewPush {
        let now = SystemClock.now();
        let kind = if n.is_multiple_of(2) {
            Kind::Confirm
        } else {
            Kind::Generic
        };
        let content = Content {
            kind,
            relying_party: RP.to_owned(),
            title: "Sign in to Payroll".to_owned(),
            message: None,
            details: vec![Field {
                label: "Place".to_owned(),
                value: "Cork".to_owned(),
            }],
            context: None,
            payment: None,
            approval: None,
            payments: None,
            redirect_url: None,
        };
        NewPush {
            payments: vec![],
            id: PushId::fresh(now),
            store: self.tenant.clone(),
            user: UserRef::Id(self.users[n % self.users.len()].clone()),
            content_hash: content_hash(&content),
            content,
            target: Target::All,
            nonce: random_text::<24>(),
            lane,
            match_required: kind == Kind::Confirm,
            idempotency: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
            process: None,
            terms: Terms::default(),
            created_at: now,
            expires_at: now + 600_000,
        }
    }
}
