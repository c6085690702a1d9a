//! Tokens that processes share: how many the providers see, whoever starts, dies or comes late.

use crate::bed::{Bed, accepted, call, device, push_all, until};
use async_trait::async_trait;
use shared::clock::{Clock as _, ManualClock, Millis, SharedClock, SystemClock};
use shared::crypto::ServerSecret;
use shared::id::MessageId;
use shared::store::db::Statement;
use shared::store::{Db, Handover, Store};
use simulator::{ApnsReason, Script};
use std::sync::Arc;
use workers::SharedTokens;
use workers::push::{
    Kept, KeptToken, Lease, Options, Provider, Providers, PushResult, Shelf, TokenKey, Unread,
};

const MINUTE: i64 = 60_000;

static SEALED: Statement = Statement::new("SELECT sealed FROM push_tokens");

/// A deployment: a database and a secret that several processes share.
struct Deployment {
    name: &'static str,
    bed: Bed,
    db: Db,
    secret: Arc<ServerSecret>,
    left: Left,
}

/// What a test leaves behind.
enum Left {
    Folder(std::path::PathBuf),
    Schema(String, String),
}

async fn run(url: &str, text: String) {
    let admin = Db::open(url).await.unwrap();
    let statement = Statement::new(Box::leak(text.into_boxed_str()));
    admin.write(&statement, &[]).await.unwrap();
    admin.close().await;
}

/// One on each database. `scripts/test` provides PostgreSQL.
async fn deployments() -> Vec<Deployment> {
    let unique = MessageId::fresh(0).to_string();
    let folder = std::env::temp_dir().join(format!("countersign-tokens-{unique}"));
    std::fs::create_dir_all(&folder).unwrap();
    let lite = format!("sqlite:{}", folder.join("db.sqlite").display());
    let mut all = vec![("sqlite", lite, Left::Folder(folder))];
    match std::env::var("COUNTERSIGN_TEST_DATABASE_URL") {
        Ok(url) => {
            let schema = format!("t_{unique}");
            run(&url, format!("CREATE SCHEMA {schema}")).await;
            let joint = if url.contains('?') { '&' } else { '?' };
            let own = format!("{url}{joint}options=-csearch_path%3D{schema}");
            all.push(("postgres", own, Left::Schema(url, schema)));
        }
        Err(_) => assert!(
            std::env::var("COUNTERSIGN_TEST_EMBEDDED_ONLY").is_ok(),
            "no PostgreSQL: run scripts/test, or set COUNTERSIGN_TEST_EMBEDDED_ONLY=1 to leave it out"
        ),
    }
    let mut deployments = vec![];
    for (name, url, left) in all {
        let db = Db::open(&url).await.unwrap();
        db.migrate().await.unwrap();
        let secret = ServerSecret::new(&ServerSecret::generate()).unwrap();
        deployments.push(Deployment {
            name,
            bed: Bed::new().await,
            db,
            secret: Arc::new(secret),
            left,
        });
    }
    deployments
}

impl Deployment {
    fn shelf(&self) -> SharedTokens {
        SharedTokens {
            store: Store::new(self.db.clone(), Handover::channel().0),
            secret: Arc::clone(&self.secret),
        }
    }

    fn process(&self, clock: SharedClock) -> Process<'_> {
        self.process_with(clock, Arc::new(self.shelf()))
    }

    fn process_with(&self, clock: SharedClock, shelf: Arc<dyn Shelf>) -> Process<'_> {
        let providers = Providers::new(Options {
            extra_ca_pem: Some(self.bed.gateway.ca_pem().to_owned()),
            clock,
            shelf,
            ..Options::default()
        });
        Process {
            bed: &self.bed,
            providers: providers.unwrap(),
        }
    }

    async fn close(self) {
        self.db.close().await;
        match self.left {
            Left::Folder(folder) => std::fs::remove_dir_all(folder).unwrap(),
            Left::Schema(url, schema) => run(&url, format!("DROP SCHEMA {schema} CASCADE")).await,
        }
    }

    /// Distinct provider tokens that Apple has seen.
    fn seen(&self) -> u64 {
        self.bed.gateway.counts().provider_tokens
    }
}

struct Process<'a> {
    bed: &'a Bed,
    providers: Providers,
}

impl Process<'_> {
    fn apns(&self) -> Arc<dyn Provider> {
        let credential = self.bed.apns_credential();
        self.providers.apns("p", &credential).unwrap()
    }

    fn fcm(&self) -> Arc<dyn Provider> {
        let credential = self.bed.fcm_credential();
        self.providers.fcm("p", &credential).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_and_a_restart_use_one_token_of_each_kind() {
    for it in deployments().await {
        let name = it.name;
        let processes = [0, 1].map(|_| it.process(Arc::new(SystemClock)));
        let ways = [&processes[0], &processes[1]].map(|p| (p.apns(), p.fcm()));
        let all = |way: &Arc<dyn Provider>| {
            let way = Arc::clone(way);
            async move { push_all(&way, (0..200).map(device).collect(), 200).await }
        };
        let results = tokio::join!(
            all(&ways[0].0),
            all(&ways[1].0),
            all(&ways[0].1),
            all(&ways[1].1)
        );
        for results in [results.0, results.1, results.2, results.3] {
            assert!(results.iter().all(accepted), "{name}");
        }
        drop(ways);
        drop(processes);
        let restarted = it.process(Arc::new(SystemClock));
        for way in [restarted.apns(), restarted.fcm()] {
            assert!(accepted(&way.push(&call(&device(1))).await), "{name}");
        }
        let counts = it.bed.gateway.counts();
        assert_eq!((it.seen(), counts.tokens_issued), (1, 1), "{name}");
        // A dump of the database holds no token.
        for row in it.db.fetch(&SEALED, &[]).await.unwrap() {
            let sealed = row.text("sealed").unwrap();
            assert!(sealed.starts_with("1."), "{name}");
        }
        it.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_grows_old_is_replaced_by_one_for_all() {
    for it in deployments().await {
        let name = it.name;
        // The simulator judges by the machine's clock: the first token is almost an hour old to it in the end.
        let clock = ManualClock::at(SystemClock.now() - 51 * MINUTE);
        let processes = [0, 1, 2].map(|_| it.process(clock.clone()));
        let ways = [&processes[0], &processes[1], &processes[2]].map(Process::apns);
        for way in &ways {
            assert!(accepted(&way.push(&call(&device(1))).await), "{name}");
        }
        assert_eq!(it.seen(), 1, "{name}");
        clock.advance(50 * MINUTE);
        for _ in 0..40 {
            for way in &ways {
                assert!(accepted(&way.push(&call(&device(1))).await), "{name}");
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        until("the new token", || it.seen() == 2).await;
        let late = it.process(clock.clone()).apns();
        assert!(accepted(&late.push(&call(&device(1))).await), "{name}");
        assert_eq!(it.seen(), 2, "{name}");
        it.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_replaced_after_twenty_minutes_and_once() {
    for it in deployments().await {
        let name = it.name;
        let clock = ManualClock::at(SystemClock.now() - 30 * MINUTE);
        let processes = [0, 1].map(|_| it.process(clock.clone()));
        let ways = [&processes[0], &processes[1]].map(Process::apns);
        for way in &ways {
            assert!(accepted(&way.push(&call(&device(9))).await), "{name}");
        }
        let refused = Script::Apns(ApnsReason::ExpiredProviderToken);
        let skew = PushResult::Credentials {
            reason: "clock_skew".into(),
        };
        it.bed.gateway.script_times(&device(1), refused.clone(), 2);
        clock.advance(20 * MINUTE);
        for way in &ways {
            assert_eq!(way.push(&call(&device(1))).await, skew, "{name}");
        }
        assert_eq!(it.seen(), 1, "{name}");
        clock.advance(MINUTE);
        for (number, way) in ways.iter().enumerate() {
            // Each is refused once and sends again: with a new token the one, with the one's token the other.
            let token = device(number + 2);
            it.bed.gateway.script_times(&token, refused.clone(), 1);
            assert!(accepted(&way.push(&call(&token)).await), "{name}");
        }
        assert_eq!(it.seen(), 2, "{name}");
        it.close().await;
    }
}

/// The shelf of a process that dies when it has made a token.
struct Dying(SharedTokens);

#[async_trait]
impl Shelf for Dying {
    async fn look(&self, key: &TokenKey) -> Result<Kept, Unread> {
        self.0.look(key).await
    }
    async fn lease(
        &self,
        key: &TokenKey,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<Option<Lease>, Unread> {
        self.0.lease(key, seen, now, until).await
    }
    async fn put(&self, _: &Lease, _: &KeptToken, _: Millis) -> Result<bool, Unread> {
        std::future::pending().await
    }
    async fn give_back(&self, _: &Lease) -> Result<(), Unread> {
        std::future::pending().await
    }
    async fn not_before(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        self.0.not_before(key, at).await
    }
    async fn not_after(&self, key: &TokenKey, at: Millis) -> Result<(), Unread> {
        self.0.not_after(key, at).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_over_a_token_holds_the_others_up_for_seconds() {
    for it in deployments().await {
        let name = it.name;
        let clock = ManualClock::at(SystemClock.now());
        let dying = it.process_with(clock.clone(), Arc::new(Dying(it.shelf())));
        let way = dying.apns();
        let push = tokio::spawn(async move { way.push(&call(&device(1))).await });
        let mut leased = false;
        while !leased {
            leased = !it.db.fetch(&SEALED, &[]).await.unwrap().is_empty();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        push.abort();
        assert!(push.await.unwrap_err().is_cancelled(), "{name}");
        drop(dying);

        let other = it.process(clock.clone()).apns();
        let waited = other.push(&call(&device(1))).await;
        let reason = "token_awaited".into();
        assert_eq!(waited, PushResult::Unprocessed { reason }, "{name}");
        assert_eq!(it.seen(), 0, "{name}");
        clock.advance(15_000);
        assert!(accepted(&other.push(&call(&device(1))).await), "{name}");
        assert_eq!(it.seen(), 1, "{name}");
        it.close().await;
    }
}
