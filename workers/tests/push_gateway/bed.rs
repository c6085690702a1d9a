//! A simulator, and providers that trust it.

use shared::clock::{Clock as _, SystemClock};
use shared::domain::{ApnsCredential, FcmCredential, Kind};
use shared::id::{DeliveryId, PushId};
use shared::message::Lane;
use shared::secret::Secret;
use simulator::{Gateway, GatewayOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use workers::push::{Call, Options, Provider, Providers, PushResult};

pub(crate) struct Bed {
    pub(crate) gateway: Gateway,
    pub(crate) providers: Providers,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let gateway = Gateway::start(GatewayOptions::default()).await.unwrap();
        Self::made(gateway, change)
    }

    /// On a gateway that is started already.
    pub(crate) fn on(gateway: Gateway) -> Self {
        Self::made(gateway, |_| {})
    }

    fn made(gateway: Gateway, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            extra_ca_pem: Some(gateway.ca_pem().to_owned()),
            ..Options::default()
        };
        change(&mut options);
        let providers = Providers::new(options).unwrap();
        Self { gateway, providers }
    }

    pub(crate) fn apns_credential(&self) -> ApnsCredential {
        let key = self.gateway.apns_key();
        ApnsCredential {
            team_id: key.team_id,
            key_id: key.key_id,
            topic: key.topic,
            private_key: key.p8,
            endpoint: self.gateway.apns_url().to_owned(),
        }
    }

    pub(crate) fn fcm_credential(&self) -> FcmCredential {
        FcmCredential {
            service_account: self.gateway.service_account_json(),
            endpoint: self.gateway.fcm_url().to_owned(),
        }
    }

    pub(crate) fn apns(&self, policy: &str) -> Arc<dyn Provider> {
        let credential = self.apns_credential();
        self.providers.apns(policy, &credential).unwrap()
    }

    pub(crate) fn fcm(&self, policy: &str) -> Arc<dyn Provider> {
        let credential = self.fcm_credential();
        self.providers.fcm(policy, &credential).unwrap()
    }
}

/// An APNs token that differs per number.
pub(crate) fn device(number: usize) -> String {
    format!("{number:064x}")
}

pub(crate) fn call(token: &str) -> Call {
    let now = SystemClock.now();
    Call {
        delivery: DeliveryId::fresh(now),
        push: PushId::fresh(now),
        kind: Kind::Confirm,
        lane: Lane::Interactive,
        token: Secret::new(token),
        expires_at: now + 60_000,
        attempt: 1,
        traceparent: None,
    }
}

pub(crate) fn accepted(result: &PushResult) -> bool {
    matches!(result, PushResult::Accepted { .. })
}

/// Pushes to all `tokens`, `flights` at a time.
pub(crate) async fn push_all(
    provider: &Arc<dyn Provider>,
    tokens: Vec<String>,
    flights: usize,
) -> Vec<PushResult> {
    let mut results = vec![];
    let mut running = JoinSet::new();
    for token in tokens {
        if running.len() == flights {
            results.push(running.join_next().await.unwrap().unwrap());
        }
        let provider = Arc::clone(provider);
        running.spawn(async move { provider.push(&call(&token)).await });
    }
    results.extend(running.join_all().await);
    results
}

/// Waits until `done`, or fails after ten seconds.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
