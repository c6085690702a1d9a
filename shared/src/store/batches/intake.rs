//! Taking lines: some hundred in one transaction, each a push that waits in the backlog.

use super::{Arg, Error, Statement, Store, Upload, parsed, to_json};
use crate::clock::Millis;
use crate::domain::{Content, Target, UserStatus};
use crate::id::{BatchId, ChunkId, PushId, StoreId, UserId};
use crate::message::Lane;
use crate::store::UserRef;
use crate::store::db::Tx;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// How long a push may wait in the backlog at most: whoever forgets a paused batch finds its pushes ended as `expired`, `not_released`.
const HOLD: Millis = 7 * 24 * 3_600_000;

static GUARD: Statement = Statement::new(
    "UPDATE batches SET touched_at = $3 WHERE id = $1 AND upload = $2 AND received_at IS NULL AND state IN ('receiving', 'paused')
     RETURNING id",
);
// SQLite keeps the order of a CROSS JOIN: else it goes through all users, or pushes, of the store.
static USERS: Statement = Statement::new(
    "SELECT r.value->>'n' AS n, u.id, u.status FROM {each:$2} CROSS JOIN users u WHERE u.store_id = $1 AND u.id = r.value->>'user'
     UNION ALL
     SELECT r.value->>'n' AS n, u.id, u.status FROM {each:$3} CROSS JOIN users u WHERE u.store_id = $1 AND u.external_id = r.value->>'user'",
);
static KNOWN: Statement = Statement::new(
    "SELECT p.id, p.idem_key, p.idem_hash, p.batch_id, p.line FROM {texts:$2}
     CROSS JOIN pushes p WHERE p.store_id = $1 AND p.idem_key = r.value",
);
static ADD: Statement = Statement::new(
    "INSERT INTO pushes (id, store_id, user_id, rp, kind, lane, state, reason, target, nonce, content, content_hash, match_required,
       wrong_codes, idem_key, idem_hash, correlation_id, created_at, expires_at, batch_id, line, lifetime)
     SELECT r.value->>'id', $2, r.value->>'user', r.value->>'rp', r.value->>'kind', $3, 'accepted', '', r.value->>'target',
       r.value->>'nonce', r.value->>'content', r.value->>'content_hash', 0, 0, r.value->>'key', r.value->>'hash',
       r.value->>'correlation_id', $5, $6, $4, CAST(r.value->>'line' AS BIGINT), CAST(r.value->>'lifetime' AS BIGINT)
     FROM {each:$1} WHERE true ON CONFLICT DO NOTHING RETURNING id",
);
static ADD_CHUNKS: Statement = Statement::new(
    "INSERT INTO backlog (id, store_id, batch_id, pushes, first_push, first_line, row_count, bytes, created_at)
     SELECT r.value->>'id', $2, $3, r.value->>'pushes', r.value->>'first', CAST(r.value->>'line' AS BIGINT), CAST(r.value->>'rows' AS BIGINT),
       CAST(r.value->>'bytes' AS BIGINT), $4 FROM {each:$1}",
);
// An upload that was cut comes again from its first line: what was refused then is judged anew.
static FORGET: Statement =
    Statement::new("DELETE FROM batch_refusals WHERE batch_id = $1 AND line >= $2 AND line <= $3");
static REFUSE: Statement = Statement::new(
    "INSERT INTO batch_refusals (batch_id, line, row_key, duplicate_of, faults)
     SELECT $2, CAST(r.value->>'line' AS BIGINT), r.value->>'key', r.value->>'duplicate_of', r.value->>'faults' FROM {each:$1} WHERE true
     ON CONFLICT DO NOTHING",
);
static COUNT: Statement = Statement::new(
    "UPDATE batches SET lines = CASE WHEN lines > $2 THEN lines ELSE $2 END, accepted = accepted + $3, waiting = waiting + $3,
       waiting_bytes = waiting_bytes + $4 WHERE id = $1",
);

/// A valid line.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// Its number, from 1.
    pub line: i64,
    /// The sender's idempotency key, one for the whole store.
    pub key: Option<String>,
    /// The hash of what was asked.
    pub hash: String,
    /// The push that it becomes.
    pub id: PushId,
    /// Whom to ask.
    pub user: UserRef,
    /// What to show.
    pub content: Content,
    /// The hash of what is shown.
    pub content_hash: String,
    /// Which devices.
    pub target: Target,
    /// Single-use.
    pub nonce: String,
    /// How long an answer counts once a worker has taken it.
    pub lifetime: Millis,
    /// The sender's own.
    pub correlation_id: Option<String>,
    /// How long the line was.
    pub bytes: i64,
}

/// A line that becomes no push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its number.
    pub line: i64,
    /// The sender's key.
    pub key: Option<String>,
    /// The push that the same key has made before, with the same request: no fault.
    pub duplicate_of: Option<PushId>,
    /// JSON: the faults, as in a problem's `errors`.
    pub faults: String,
}

/// What a look says of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowCheck {
    /// It becomes, or became, a push of this batch.
    Good(Option<UserId>),
    /// The same request made this push elsewhere.
    Duplicate(PushId),
    /// Its key was used for another request.
    KeyReused,
    /// The store has no such user.
    NoUser,
    /// The user may not be asked.
    UserInactive(UserStatus),
}

/// What became of a part of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Took {
    /// New pushes.
    pub new: usize,
    /// Lines that had been taken before.
    pub again: usize,
    /// Lines whose key has made a push elsewhere.
    pub duplicates: usize,
    /// Lines with faults.
    pub refused: usize,
}

struct Made {
    push: PushId,
    hash: String,
    batch: Option<String>,
    line: Option<i64>,
}

type Users = HashMap<usize, (UserId, UserStatus)>;

/// The sender's key, or one that follows from the place in the batch.
fn key_of(batch: Option<&BatchId>, row: &NewRow) -> Option<String> {
    let own = || batch.map(|batch| format!("{batch}:{}", row.line));
    row.key.clone().or_else(own)
}

fn read_users(rows: &[crate::store::db::Row]) -> Result<Users, Error> {
    rows.iter()
        .map(|row| {
            let n = row.text("n")?.parse().map_err(|_| Error::Row("n"))?;
            Ok((n, (parsed(row, "id")?, parsed(row, "status")?)))
        })
        .collect()
}

/// The users of `rows` as the last two parameters of [`USERS`].
fn asked(rows: &[NewRow]) -> (String, String) {
    let (mut by_id, mut by_external) = (Vec::new(), Vec::new());
    for (n, row) in rows.iter().enumerate() {
        let n = n.to_string();
        match &row.user {
            UserRef::Id(user) => by_id.push(json!({"n": n, "user": user})),
            UserRef::External(user) => {
                by_external.push(json!({"n": n, "user": user}));
            }
        }
    }
    (to_json(&by_id), to_json(&by_external))
}

fn read_known(rows: &[crate::store::db::Row]) -> Result<HashMap<String, Made>, Error> {
    rows.iter()
        .map(|row| {
            let made = Made {
                push: parsed(row, "id")?,
                hash: row.text("idem_hash")?,
                batch: row.maybe_text("batch_id")?,
                line: row.maybe_int("line")?,
            };
            Ok((row.text("idem_key")?, made))
        })
        .collect()
}

/// What the key of a line says, where it was used before.
fn by_key(
    batch: Option<&BatchId>,
    row: &NewRow,
    known: &HashMap<String, Made>,
) -> Option<RowCheck> {
    let made = known.get(&key_of(batch, row)?)?;
    let same_place = batch.is_some_and(|batch| made.batch.as_deref() == Some(batch.as_str()))
        && made.line == Some(row.line);
    Some(if made.hash != row.hash {
        RowCheck::KeyReused
    } else if same_place {
        RowCheck::Good(None)
    } else {
        RowCheck::Duplicate(made.push.clone())
    })
}

fn judge(
    batch: Option<&BatchId>,
    n: usize,
    row: &NewRow,
    known: &HashMap<String, Made>,
    users: &Users,
) -> RowCheck {
    by_key(batch, row, known).unwrap_or_else(|| match users.get(&n) {
        None => RowCheck::NoUser,
        Some((user, UserStatus::Active)) => RowCheck::Good(Some(user.clone())),
        Some((_, status)) => RowCheck::UserInactive(*status),
    })
}

async fn known_keys(
    tx: &mut Tx,
    upload: &Upload,
    rows: &[NewRow],
) -> Result<HashMap<String, Made>, Error> {
    let keys: Vec<_> = rows
        .iter()
        .filter_map(|row| key_of(Some(&upload.batch.id), row))
        .collect();
    let args = [
        Arg::Text(upload.batch.store.as_str()),
        Arg::Text(&to_json(&keys)),
    ];
    read_known(&tx.fetch(&KNOWN, &args).await?)
}

fn value_of(upload: &Upload, row: &NewRow, user: &UserId) -> serde_json::Value {
    json!({"id": row.id, "user": user, "rp": row.content.relying_party, "kind": row.content.kind, "target": to_json(&row.target),
        "nonce": row.nonce, "content": to_json(&row.content), "content_hash": row.content_hash,
        "key": key_of(Some(&upload.batch.id), row), "hash": row.hash, "correlation_id": row.correlation_id, "line": row.line,
        "lifetime": row.lifetime})
}

fn chunks_of(upload: &Upload, added: &[&NewRow], now: Millis) -> Vec<serde_json::Value> {
    let most = usize::try_from(upload.batch.chunk_rows).unwrap_or(1).max(1);
    let chunk = |part: &[&NewRow]| {
        let pushes: Vec<_> = part.iter().map(|row| &row.id).collect();
        let bytes: i64 = part.iter().map(|row| row.bytes).sum();
        json!({"id": ChunkId::fresh(now), "pushes": to_json(&pushes), "first": pushes[0], "line": part[0].line, "rows": part.len(), "bytes": bytes})
    };
    added.chunks(most).map(chunk).collect()
}

impl Store {
    /// Takes lines up to number `last`, in one transaction; `faulty` are those that are no request at all, `told` says why one is refused.
    /// `None`: another upload has taken over, or the batch was cancelled.
    pub async fn take_rows(
        &self,
        upload: &Upload,
        rows: &[NewRow],
        faulty: &[Refusal],
        (first, last): (i64, i64),
        told: impl Fn(&RowCheck) -> Option<String>,
        now: Millis,
    ) -> Result<Option<Took>, Error> {
        let batch = &upload.batch;
        let mut tx = self.db.begin().await?;
        let args = [
            Arg::Text(batch.id.as_str()),
            Arg::Text(&upload.token),
            Arg::Int(now),
        ];
        if tx.fetch(&GUARD, &args).await?.is_empty() {
            return Ok(None);
        }
        let known = known_keys(&mut tx, upload, rows).await?;
        let (by_id, by_external) = asked(rows);
        let args = [
            Arg::Text(batch.store.as_str()),
            Arg::Text(&by_id),
            Arg::Text(&by_external),
        ];
        let users = read_users(&tx.fetch(&USERS, &args).await?)?;
        let mut checks: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(n, row)| judge(Some(&batch.id), n, row, &known, &users))
            .collect();
        let wanted: Vec<_> = rows
            .iter()
            .zip(&checks)
            .filter_map(|(row, check)| match check {
                RowCheck::Good(Some(user)) => Some(value_of(upload, row, user)),
                _ => None,
            })
            .collect();
        let added = add(&mut tx, upload, &wanted, now).await?;
        if added.len() < wanted.len() {
            // The same key twice in this part, or somebody else took it at this moment.
            let known = known_keys(&mut tx, upload, rows).await?;
            for (row, check) in rows.iter().zip(&mut checks) {
                if matches!(check, RowCheck::Good(Some(_))) && !added.contains(row.id.as_str()) {
                    *check = by_key(Some(&batch.id), row, &known).unwrap_or(RowCheck::KeyReused);
                }
            }
        }
        let new: Vec<&NewRow> = rows
            .iter()
            .filter(|row| added.contains(row.id.as_str()))
            .collect();
        let mut refusals = faulty.to_vec();
        let mut took = Took {
            new: new.len(),
            ..Took::default()
        };
        for (row, check) in rows.iter().zip(&checks) {
            match (told(check), check) {
                (None, RowCheck::Good(Some(_))) => {}
                (None, _) => took.again += 1,
                (Some(faults), check) => {
                    let duplicate_of = match check {
                        RowCheck::Duplicate(push) => Some(push.clone()),
                        _ => None,
                    };
                    took.duplicates += usize::from(duplicate_of.is_some());
                    refusals.push(Refusal {
                        line: row.line,
                        key: row.key.clone(),
                        duplicate_of,
                        faults,
                    });
                }
            }
        }
        took.refused = refusals.len() - took.duplicates;
        record(&mut tx, upload, &new, &refusals, (first, last), now).await?;
        crate::crash::point("B1");
        tx.commit().await?;
        crate::crash::point("B2");
        self.backlog_news.notify_one();
        Ok(Some(took))
    }

    /// What would become of these lines. Writes nothing.
    pub async fn check_rows(
        &self,
        store: &StoreId,
        rows: &[NewRow],
    ) -> Result<Vec<RowCheck>, Error> {
        let keys: Vec<_> = rows.iter().filter_map(|row| key_of(None, row)).collect();
        let args = [Arg::Text(store.as_str()), Arg::Text(&to_json(&keys))];
        let known = read_known(&self.db.fetch(&KNOWN, &args).await?)?;
        let (by_id, by_external) = asked(rows);
        let args = [
            Arg::Text(store.as_str()),
            Arg::Text(&by_id),
            Arg::Text(&by_external),
        ];
        let users = read_users(&self.db.fetch(&USERS, &args).await?)?;
        let checks = rows
            .iter()
            .enumerate()
            .map(|(n, row)| judge(None, n, row, &known, &users));
        Ok(checks.collect())
    }
}

async fn add(
    tx: &mut Tx,
    upload: &Upload,
    wanted: &[serde_json::Value],
    now: Millis,
) -> Result<HashSet<String>, Error> {
    if wanted.is_empty() {
        return Ok(HashSet::new());
    }
    let args = [
        Arg::Text(&to_json(&wanted)),
        Arg::Text(upload.batch.store.as_str()),
        Arg::Text(Lane::Bulk.as_str()),
        Arg::Text(upload.batch.id.as_str()),
        Arg::Int(now),
        Arg::Int(now + HOLD),
    ];
    let rows = tx.fetch(&ADD, &args).await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// The chunks of the new pushes, the refusals, and the batch's counts.
async fn record(
    tx: &mut Tx,
    upload: &Upload,
    new: &[&NewRow],
    refusals: &[Refusal],
    (first, last): (i64, i64),
    now: Millis,
) -> Result<(), Error> {
    let id = upload.batch.id.as_str();
    if !new.is_empty() {
        let args = [
            Arg::Text(&to_json(&chunks_of(upload, new, now))),
            Arg::Text(upload.batch.store.as_str()),
            Arg::Text(id),
            Arg::Int(now),
        ];
        tx.fetch(&ADD_CHUNKS, &args).await?;
    }
    let args = [Arg::Text(id), Arg::Int(first), Arg::Int(last)];
    tx.fetch(&FORGET, &args).await?;
    if !refusals.is_empty() {
        let rows: Vec<_> = refusals
            .iter()
            .map(|one| json!({"line": one.line, "key": one.key, "duplicate_of": one.duplicate_of, "faults": one.faults}))
            .collect();
        let args = [Arg::Text(&to_json(&rows)), Arg::Text(id)];
        tx.fetch(&REFUSE, &args).await?;
    }
    let bytes = new.iter().map(|row| row.bytes).sum();
    let args = [
        Arg::Text(id),
        Arg::Int(last),
        Arg::Int(new.len() as i64),
        Arg::Int(bytes),
    ];
    tx.fetch(&COUNT, &args).await.map(|_| ())
}
