//! Per relying party: push policies (how its devices are reached), appkey policies (which devices may register), process definitions.

use super::audit::{Note, note};
use super::db::{Arg, Error, Row, Statement, Tx};
use super::{Store, json, maybe_parsed, parsed, to_json};
use crate::audit::Act;
use crate::clock::Millis;
use crate::domain::{KeyAlgorithm, Rules};
use crate::id::StoreId;
use serde_json::Value;

static PUT_PUSH: Statement = Statement::new(
    "INSERT INTO push_policies (store_id, rp, name, apns, fcm, created_at, updated_at, max_prompts, open_prompts, cooldown, profile, fraud_lock)
     VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9, $10, $11)
     ON CONFLICT (store_id, rp) DO UPDATE SET name = excluded.name, apns = excluded.apns, fcm = excluded.fcm, max_prompts = excluded.max_prompts,
       open_prompts = excluded.open_prompts, cooldown = excluded.cooldown, profile = excluded.profile, fraud_lock = excluded.fraud_lock,
       updated_at = CASE WHEN excluded.updated_at > push_policies.updated_at THEN excluded.updated_at ELSE push_policies.updated_at + 1 END
     RETURNING created_at, updated_at",
);
static PUSH: Statement =
    Statement::new("SELECT * FROM push_policies WHERE store_id = $1 AND rp = $2");
static PUSHES: Statement =
    Statement::new("SELECT * FROM push_policies WHERE store_id = $1 ORDER BY rp");
static DROP_PUSH: Statement =
    Statement::new("DELETE FROM push_policies WHERE store_id = $1 AND rp = $2 RETURNING rp");
static PUT_APPKEY: Statement = Statement::new(
    "INSERT INTO appkey_policies (store_id, rp, platforms, max_devices, user_verification, created_at, algorithms) VALUES ($1, $2, $3, $4, $5, $6, $7)
     ON CONFLICT (store_id, rp) DO UPDATE SET platforms = excluded.platforms, max_devices = excluded.max_devices,
       user_verification = excluded.user_verification, algorithms = excluded.algorithms",
);
static APPKEY: Statement = Statement::new(
    "SELECT platforms, max_devices, user_verification, algorithms FROM appkey_policies WHERE store_id = $1 AND rp = $2",
);
static ADD_DEFINITION: Statement = Statement::new(
    "INSERT INTO process_definitions (store_id, name, version, tag, start_url, created_at) VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (store_id, name, version) DO NOTHING RETURNING name",
);
static DEFINITION: Statement = Statement::new(
    "SELECT name, version, tag, start_url FROM process_definitions
     WHERE store_id = $1 AND name = $2 AND ($3 IS NULL OR version = $3) AND ($4 IS NULL OR tag = $4) ORDER BY version DESC LIMIT 1",
);
static DEFINITIONS: Statement = Statement::new(
    "SELECT name, version, tag, start_url FROM process_definitions WHERE store_id = $1 ORDER BY name, version",
);

/// A push policy as it lies in the database: credentials sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPolicy {
    /// What people call it.
    pub name: String,
    /// A sealed [`crate::domain::ApnsCredential`].
    pub apns: Option<String>,
    /// A sealed [`crate::domain::FcmCredential`].
    pub fcm: Option<String>,
    /// How often and with what its users are asked.
    pub rules: Rules,
}

/// A push policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushPolicy {
    /// The store.
    pub store: StoreId,
    /// The relying party.
    pub rp: String,
    /// Its credentials.
    pub sealed: SealedPolicy,
    /// When it was first set.
    pub created_at: Millis,
    /// Grows with every change.
    pub updated_at: Millis,
}

impl PushPolicy {
    /// The place that a credential is sealed for.
    pub fn place(store: &StoreId, rp: &str, provider: crate::domain::Provider) -> String {
        format!("push-policy\u{1f}{store}\u{1f}{rp}\u{1f}{provider}")
    }
}

/// Which devices may register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppkeyPolicy {
    /// `ios`, `android`, `web`.
    pub platforms: Vec<String>,
    /// How many devices a user may have that are not revoked.
    pub max_devices: i64,
    /// `none`, `device` or `biometric`: the least that an answer must assert.
    pub user_verification: String,
    /// Which keys may register; those that have are not touched by a change.
    pub algorithms: Vec<KeyAlgorithm>,
}

impl Default for AppkeyPolicy {
    fn default() -> Self {
        Self {
            platforms: ["ios", "android", "web"].map(str::to_owned).to_vec(),
            max_devices: 10,
            user_verification: "none".to_owned(),
            algorithms: KeyAlgorithm::ALL.to_vec(),
        }
    }
}

/// Where a child process instance starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i64,
    /// A word that stands for a version.
    pub tag: Option<String>,
    /// The page that an accept opens.
    pub start_url: String,
}

/// What a row says of the rules; the default where it says nothing, or where there is no policy.
pub(super) fn rules_of(row: &Row) -> Result<Rules, Error> {
    let default = Rules::default();
    Ok(Rules {
        max_prompts: row.maybe_int("max_prompts")?.unwrap_or(default.max_prompts),
        open_prompts: maybe_parsed(row, "open_prompts")?.unwrap_or(default.open_prompts),
        cooldown: row.maybe_int("cooldown")?.unwrap_or(default.cooldown),
        fraud_lock: row.maybe_int("fraud_lock")?.unwrap_or(default.fraud_lock),
        profile: maybe_parsed(row, "profile")?.unwrap_or(default.profile),
    })
}

fn policy_of(row: &Row) -> Result<PushPolicy, Error> {
    Ok(PushPolicy {
        store: parsed(row, "store_id")?,
        rp: row.text("rp")?,
        sealed: SealedPolicy {
            name: row.text("name")?,
            apns: row.maybe_text("apns")?,
            fcm: row.maybe_text("fcm")?,
            rules: rules_of(row)?,
        },
        created_at: row.int("created_at")?,
        updated_at: row.int("updated_at")?,
    })
}

fn definition_of(row: &Row) -> Result<Definition, Error> {
    Ok(Definition {
        name: row.text("name")?,
        version: row.int("version")?,
        tag: row.maybe_text("tag")?,
        start_url: row.text("start_url")?,
    })
}

impl Store {
    /// Sets a relying party's push policy.
    pub async fn put_push_policy(
        &self,
        store: &StoreId,
        rp: &str,
        sealed: SealedPolicy,
        now: Millis,
    ) -> Result<PushPolicy, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(rp),
            Arg::Text(&sealed.name),
            Arg::MaybeText(sealed.apns.as_deref()),
            Arg::MaybeText(sealed.fcm.as_deref()),
            Arg::Int(now),
            Arg::Int(sealed.rules.max_prompts),
            Arg::Text(sealed.rules.open_prompts.as_str()),
            Arg::Int(sealed.rules.cooldown),
            Arg::Text(sealed.rules.profile.as_str()),
            Arg::Int(sealed.rules.fraud_lock),
        ];
        let mut tx = self.db.begin().await?;
        let rows = tx.fetch(&PUT_PUSH, &args).await?;
        let facts = serde_json::json!({"relying_party": rp, "apns": sealed.apns.is_some(), "fcm": sealed.fcm.is_some(),
            "max_prompts": sealed.rules.max_prompts,
            "open_prompts": sealed.rules.open_prompts, "cooldown": sealed.rules.cooldown, "profile": sealed.rules.profile, "fraud_lock": sealed.rules.fraud_lock});
        self.set(tx, store, Act::PushPolicySet, facts, now).await?;
        let row = rows.first().ok_or(Error::Row("push_policies"))?;
        Ok(PushPolicy {
            store: store.clone(),
            rp: rp.to_owned(),
            created_at: row.int("created_at")?,
            updated_at: row.int("updated_at")?,
            sealed,
        })
    }

    /// One push policy.
    pub async fn push_policy(
        &self,
        store: &StoreId,
        rp: &str,
    ) -> Result<Option<PushPolicy>, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(rp)];
        let rows = self.db.fetch(&PUSH, &args).await?;
        rows.first().map(policy_of).transpose()
    }

    /// A store's push policies.
    pub async fn push_policies(&self, store: &StoreId) -> Result<Vec<PushPolicy>, Error> {
        let rows = self.db.fetch(&PUSHES, &[Arg::Text(store.as_str())]).await?;
        rows.iter().map(policy_of).collect()
    }

    /// Removes a push policy. Pushes under way keep going by the devices' own fetching.
    pub async fn drop_push_policy(
        &self,
        store: &StoreId,
        rp: &str,
        now: Millis,
    ) -> Result<bool, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(rp)];
        let mut tx = self.db.begin().await?;
        if tx.fetch(&DROP_PUSH, &args).await?.is_empty() {
            return Ok(false);
        }
        let facts = serde_json::json!({"relying_party": rp});
        self.set(tx, store, Act::PushPolicyDropped, facts, now)
            .await?;
        Ok(true)
    }

    /// Notes what was set, and commits.
    async fn set(
        &self,
        mut tx: Tx,
        store: &StoreId,
        act: Act,
        facts: Value,
        now: Millis,
    ) -> Result<(), Error> {
        let set = Note::new(store, act).by(self.by.as_deref()).facts(facts);
        note(&mut tx, &[set], now).await?;
        tx.commit().await
    }

    /// Sets a relying party's appkey policy.
    pub async fn put_appkey_policy(
        &self,
        store: &StoreId,
        rp: &str,
        policy: &AppkeyPolicy,
        now: Millis,
    ) -> Result<(), Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(rp),
            Arg::Text(&to_json(&policy.platforms)),
            Arg::Int(policy.max_devices),
            Arg::Text(&policy.user_verification),
            Arg::Int(now),
            Arg::Text(&to_json(&policy.algorithms)),
        ];
        let mut tx = self.db.begin().await?;
        tx.fetch(&PUT_APPKEY, &args).await?;
        let facts = serde_json::json!({"relying_party": rp, "platforms": policy.platforms, "max_devices": policy.max_devices,
            "user_verification": policy.user_verification});
        self.set(tx, store, Act::AppkeyPolicySet, facts, now).await
    }

    /// The appkey policy in force: the relying party's own, or the default.
    pub async fn appkey_policy(&self, store: &StoreId, rp: &str) -> Result<AppkeyPolicy, Error> {
        let args = [Arg::Text(store.as_str()), Arg::Text(rp)];
        let rows = self.db.fetch(&APPKEY, &args).await?;
        rows.first().map_or_else(
            || Ok(AppkeyPolicy::default()),
            |row| {
                Ok(AppkeyPolicy {
                    platforms: json(row, "platforms")?,
                    max_devices: row.int("max_devices")?,
                    user_verification: row.text("user_verification")?,
                    // None: written by a release that knew no choice.
                    algorithms: match row.maybe_text("algorithms")? {
                        Some(_) => json(row, "algorithms")?,
                        None => AppkeyPolicy::default().algorithms,
                    },
                })
            },
        )
    }

    /// Adds a version of a process definition; `false` when it exists.
    pub async fn add_definition(
        &self,
        store: &StoreId,
        definition: &Definition,
        now: Millis,
    ) -> Result<bool, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(&definition.name),
            Arg::Int(definition.version),
            Arg::MaybeText(definition.tag.as_deref()),
            Arg::Text(&definition.start_url),
            Arg::Int(now),
        ];
        let mut tx = self.db.begin().await?;
        if tx.fetch(&ADD_DEFINITION, &args).await?.is_empty() {
            return Ok(false);
        }
        let facts =
            serde_json::json!({"definition": definition.name, "version": definition.version});
        self.set(tx, store, Act::DefinitionAdded, facts, now)
            .await?;
        Ok(true)
    }

    /// The version asked for, or the newest that fits.
    pub async fn definition(
        &self,
        store: &StoreId,
        name: &str,
        version: Option<i64>,
        tag: Option<&str>,
    ) -> Result<Option<Definition>, Error> {
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(name),
            Arg::MaybeInt(version),
            Arg::MaybeText(tag),
        ];
        let rows = self.db.fetch(&DEFINITION, &args).await?;
        rows.first().map(definition_of).transpose()
    }

    /// A store's process definitions.
    pub async fn definitions(&self, store: &StoreId) -> Result<Vec<Definition>, Error> {
        let args = [Arg::Text(store.as_str())];
        let rows = self.db.fetch(&DEFINITIONS, &args).await?;
        rows.iter().map(definition_of).collect()
    }
}
