//! The audit log in the database. A transaction notes what it does (`note`), as a row that waits, without a place in the log, so that no
//! two transactions ever wait for each other's place. The chainer (`chain_audit`) gives waiting rows their places afterwards, a batch for each
//! store under that store's head, which it holds: two chainers never chain twice, and what a crash leaves waiting is chained by the next one.

use super::db::{Arg, Error, Row, Statement, Tx};
use super::{Store, to_json};
use crate::audit::{Act, GENESIS, VERSION, chained};
use crate::clock::{Millis, rfc3339};
use crate::id::{AuditId, DeviceId, PushId, StoreId, UserId};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// How many entries one transaction chains at most.
const BATCH: i64 = 100;

static NOTE: Statement = Statement::new(
    "INSERT INTO audit_waiting (id, store_id, act, push_id, entry)
     SELECT r.value->>'id', r.value->>'store', r.value->>'act', r.value->>'push', r.value->>'entry' FROM {each:$1}",
);
static ANY: Statement = Statement::new("SELECT id FROM audit_waiting LIMIT 1");
static STORES: Statement = Statement::new(
    "SELECT DISTINCT t.store_id FROM (SELECT store_id FROM audit_waiting ORDER BY id LIMIT $1) AS t ORDER BY t.store_id",
);
static OPEN_HEADS: Statement = Statement::new(
    "INSERT INTO audit_heads (store_id, seq, hash) SELECT r.value, 0, $2 FROM {texts:$1} WHERE true ON CONFLICT DO NOTHING",
);
static HOLD_HEADS: Statement = Statement::new(
    "SELECT store_id, seq, hash FROM audit_heads WHERE store_id {in:$1} ORDER BY store_id {skip_locked}",
);
// Only now, with the heads held: what another chainer has taken meanwhile is gone from here.
static TAKE: Statement = Statement::new(
    "DELETE FROM audit_waiting WHERE id IN
       (SELECT w.id FROM audit_waiting w WHERE w.store_id {in:$1} ORDER BY w.id LIMIT $2)
     RETURNING id, store_id, act, push_id, entry",
);
static CHAIN: Statement = Statement::new(
    "INSERT INTO audit_log (store_id, seq, id, act, push_id, entry)
     SELECT r.value->>'store', CAST(r.value->>'seq' AS BIGINT), r.value->>'id', r.value->>'act', r.value->>'push', r.value->>'entry' FROM {each:$1}",
);
static MOVE_HEADS: Statement = Statement::new(
    "UPDATE audit_heads SET seq = CAST(r.value->>'seq' AS BIGINT), hash = r.value->>'hash' FROM {each:$1}
     WHERE audit_heads.store_id = r.value->>'store'",
);
static HEAD: Statement = Statement::new("SELECT seq, hash FROM audit_heads WHERE store_id = $1");
static ENTRIES: Statement = Statement::new(
    "SELECT entry FROM audit_log WHERE store_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
);
static OF_PUSH: Statement = Statement::new(
    "SELECT entry FROM audit_log WHERE store_id = $1 AND seq + 0 > $2 AND push_id = $4 ORDER BY seq LIMIT $3",
);

/// What a transaction has done. Identifiers, words, numbers and hashes only: never a text that a person reads or types, nor a token.
pub(super) struct Note<'a> {
    store: &'a StoreId,
    act: Act,
    push: Option<&'a PushId>,
    user: Option<&'a UserId>,
    device: Option<&'a DeviceId>,
    by: Option<&'a str>,
    facts: Value,
}

impl<'a> Note<'a> {
    pub(super) fn new(store: &'a StoreId, act: Act) -> Self {
        Self {
            store,
            act,
            push: None,
            user: None,
            device: None,
            by: None,
            facts: Value::Null,
        }
    }

    pub(super) fn push(mut self, push: &'a PushId) -> Self {
        self.push = Some(push);
        self
    }

    pub(super) fn user(mut self, user: &'a UserId) -> Self {
        self.user = Some(user);
        self
    }

    pub(super) fn device(mut self, device: impl Into<Option<&'a DeviceId>>) -> Self {
        self.device = device.into();
        self
    }

    /// Who did it, by identifier.
    pub(super) fn by(mut self, who: Option<&'a str>) -> Self {
        self.by = who;
        self
    }

    /// An object; what is null in it is left out.
    pub(super) fn facts(mut self, facts: Value) -> Self {
        self.facts = facts;
        self
    }

    fn row(&self, id: &AuditId, now: Millis) -> Value {
        let mut entry = json!({"v": VERSION, "id": id, "store": self.store, "at": rfc3339(now), "act": self.act, "push": self.push,
            "user": self.user, "device": self.device, "by": self.by, "facts": self.facts});
        without_nulls(&mut entry);
        json!({"id": id, "store": self.store, "act": self.act, "push": self.push, "entry": entry.to_string()})
    }
}

fn without_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.values_mut().for_each(without_nulls);
        map.retain(|_, value| !value.is_null() && *value != json!({}));
    }
}

/// An identifier behind all others that this process has made in the same millisecond, so that what one process does stands in its order.
fn next_id(now: Millis) -> AuditId {
    static LAST: Mutex<String> = Mutex::new(String::new());
    /// Prefix and time: `aud_`, and 50 bits of which two are unused.
    const TIME: usize = 14;
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = AuditId::fresh(now);
    let same_time = last.get(..TIME) == fresh.as_str().get(..TIME);
    let id = if same_time && fresh.as_str() <= last.as_str() {
        AuditId::behind(&last).unwrap_or(fresh)
    } else {
        fresh
    };
    id.as_str().clone_into(&mut last);
    id
}

/// Notes what the caller's transaction does, as part of it. One statement for any number of notes.
pub(super) async fn note(tx: &mut Tx, notes: &[Note<'_>], now: Millis) -> Result<(), Error> {
    if notes.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = notes
        .iter()
        .map(|note| note.row(&next_id(now), now))
        .collect();
    tx.fetch(&NOTE, &[Arg::Text(&to_json(&rows))]).await?;
    Ok(())
}

/// The last place of a log, and its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    /// 0 while the log is empty.
    pub seq: i64,
    /// The hash of the entry there.
    pub hash: String,
}

fn line_of(row: &Row) -> Result<String, Error> {
    row.text("entry")
}

impl Store {
    /// Gives waiting entries their places, of every store that no other chainer holds. Says how many; a full batch may have more behind it.
    pub async fn chain_audit(&self) -> Result<usize, Error> {
        // Most looks find nothing, and a read costs no writer.
        if self.db.fetch(&ANY, &[]).await?.is_empty() {
            return Ok(0);
        }
        let mut tx = self.db.begin_later().await?;
        let stores = tx.fetch(&STORES, &[Arg::Int(BATCH)]).await?;
        let stores: Vec<String> = stores
            .iter()
            .map(|row| row.text("store_id"))
            .collect::<Result<_, _>>()?;
        let stores = to_json(&stores);
        tx.fetch(&OPEN_HEADS, &[Arg::Text(&stores), Arg::Text(GENESIS)])
            .await?;
        let mut heads = BTreeMap::new();
        for row in tx.fetch(&HOLD_HEADS, &[Arg::Text(&stores)]).await? {
            let head = (row.int("seq")?, row.text("hash")?);
            heads.insert(row.text("store_id")?, head);
        }
        let held: Vec<_> = heads.keys().collect();
        let args = [Arg::Text(&to_json(&held)), Arg::Int(BATCH)];
        let mut taken = Vec::new();
        for row in tx.fetch(&TAKE, &args).await? {
            taken.push((row.text("id")?, row));
        }
        // Identifiers sort by time. RETURNING promises no order.
        taken.sort_by(|a, b| a.0.cmp(&b.0));
        let mut rows = Vec::with_capacity(taken.len());
        let mut moved = HashMap::new();
        for (id, row) in &taken {
            let store = row.text("store_id")?;
            let entry: Map<String, Value> = super::json(row, "entry")?;
            let (seq, prev) = heads.get_mut(&store).ok_or(Error::Row("audit_heads"))?;
            *seq += 1;
            let (line, hash) = chained(entry, seq.unsigned_abs(), prev);
            prev.clone_from(&hash);
            rows.push(json!({"store": store, "seq": *seq, "id": id, "act": row.text("act")?, "push": row.maybe_text("push_id")?, "entry": line}));
            moved.insert(
                store.clone(),
                json!({"store": store, "seq": *seq, "hash": hash}),
            );
        }
        if rows.is_empty() {
            return Ok(0);
        }
        tx.fetch(&CHAIN, &[Arg::Text(&to_json(&rows))]).await?;
        crate::crash::point("C1");
        let moved: Vec<_> = moved.into_values().collect();
        tx.fetch(&MOVE_HEADS, &[Arg::Text(&to_json(&moved))])
            .await?;
        tx.commit().await?;
        Ok(rows.len())
    }

    /// The end of a store's log.
    pub async fn audit_head(&self, store: &StoreId) -> Result<HeadRow, Error> {
        let rows = self.db.fetch(&HEAD, &[Arg::Text(store.as_str())]).await?;
        Ok(match rows.first() {
            Some(row) => HeadRow {
                seq: row.int("seq")?,
                hash: row.text("hash")?,
            },
            None => HeadRow {
                seq: 0,
                hash: GENESIS.to_owned(),
            },
        })
    }

    /// Lines of a store's log behind place `after`, in order; only those about `push` where one is given.
    pub async fn audit_entries(
        &self,
        store: &StoreId,
        after: i64,
        push: Option<&PushId>,
        limit: i64,
    ) -> Result<Vec<String>, Error> {
        let (store, after, limit) = (Arg::Text(store.as_str()), Arg::Int(after), Arg::Int(limit));
        let rows = match push {
            None => self.db.fetch(&ENTRIES, &[store, after, limit]).await?,
            Some(push) => {
                let args = [store, after, limit, Arg::Text(push.as_str())];
                self.db.fetch(&OF_PUSH, &args).await?
            }
        };
        rows.iter().map(line_of).collect()
    }
}
