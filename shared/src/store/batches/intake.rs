//! Taking lines: up to a thousand in one transaction, each a push that waits in the backlog.

use super::{Arg, Error, Statement, Store, Upload, parsed, to_json};
use crate::clock::Millis;
use crate::domain::{Content, Target, UserStatus};
use crate::id::{BatchId, ChunkId, PushId, StoreId, UserId};
use crate::message::Lane;
use crate::store::UserRef;
use crate::store::db::{Row, Rows, Tx};
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// How many lines one transaction takes at best: an index page that many of them change is written once.
pub const PART: usize = 1_000;
/// How long a push may wait in the backlog at most: whoever forgets a paused batch finds its pushes ended as `expired`, `not_released`.
const HOLD: Millis = 7 * 24 * 3_600_000;

static GUARD: Statement = Statement::new(
    "UPDATE batches SET touched_at = $3 WHERE id = $1 AND upload = $2 AND received_at IS NULL AND state IN ('receiving', 'paused')
     RETURNING lines",
);
// SQLite keeps the order of a CROSS JOIN: else it goes through all users, or pushes, of the store.
static BY_ID: Statement = Statement::new(
    "SELECT r.n, u.id, u.status FROM {rows:2 n:int name} CROSS JOIN users u WHERE u.store_id = $1 AND u.id = r.name",
);
static BY_EXTERNAL_ID: Statement = Statement::new(
    "SELECT r.n, u.id, u.status FROM {rows:2 n:int name} CROSS JOIN users u WHERE u.store_id = $1 AND u.external_id = r.name",
);
static KNOWN: Statement = Statement::new(
    "SELECT p.id, p.idem_key, p.idem_hash, p.batch_id, p.line FROM pushes p WHERE p.store_id || '' = $1 AND p.idem_key {in:$2}",
);
static KNOWN_LINES: Statement = Statement::new(
    "SELECT id, idem_key, idem_hash, batch_id, line FROM pushes WHERE batch_id = $1 AND line >= $2 AND line <= $3",
);
static ADD: Statement = Statement::new(
    "INSERT INTO pushes (id, store_id, user_id, rp, kind, lane, state, reason, target, nonce, content, content_hash, match_required,
       wrong_codes, idem_key, idem_hash, correlation_id, created_at, expires_at, batch_id, line, lifetime)
     SELECT r.id, $1, r.user_id, r.rp, r.kind, $2, 'accepted', '', r.target, r.nonce, r.content, r.content_hash, 0, 0, r.idem_key, r.idem_hash,
       r.correlation_id, $4, $5, $3, r.line, r.lifetime
     FROM {rows:6 id user_id rp kind target nonce content content_hash idem_key idem_hash correlation_id line:int lifetime:int}
     WHERE true ON CONFLICT DO NOTHING",
);
static WHICH: Statement = Statement::new("SELECT id FROM pushes WHERE id {in:$1}");
static ADD_CHUNKS: Statement = Statement::new(
    "INSERT INTO backlog (id, store_id, batch_id, pushes, first_line, row_count, bytes, lifetime, created_at, expire_due)
     SELECT r.value->>'id', $2, $3, r.value->>'pushes', CAST(r.value->>'line' AS BIGINT), CAST(r.value->>'rows' AS BIGINT),
       CAST(r.value->>'bytes' AS BIGINT), CAST(r.value->>'lifetime' AS BIGINT), $4, $5 FROM {each:$1}",
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

#[derive(Clone)]
struct Made {
    push: PushId,
    hash: String,
    /// Where, in this batch.
    line: Option<i64>,
}

type Users = HashMap<usize, (UserId, UserStatus)>;

/// What lines have become before: known by their keys, and by their places in this batch.
#[derive(Default)]
struct Known {
    by_key: HashMap<String, Made>,
    by_line: HashMap<i64, Made>,
}

impl Known {
    fn note(&mut self, batch: Option<&BatchId>, rows: &[Row]) -> Result<(), Error> {
        for row in rows {
            let of = row.maybe_text("batch_id")?;
            let made = Made {
                push: parsed(row, "id")?,
                hash: row.text("idem_hash")?,
                line: row
                    .maybe_int("line")?
                    .filter(|_| batch.is_some_and(|batch| of.as_deref() == Some(batch.as_str()))),
            };
            if let Some(line) = made.line {
                self.by_line.insert(line, made.clone());
            }
            if let Some(key) = row.maybe_text("idem_key")? {
                self.by_key.insert(key, made);
            }
        }
        Ok(())
    }

    /// What is known of a line, where it came before, or its key did.
    fn check(&self, row: &NewRow) -> Option<RowCheck> {
        let by_key = row.key.as_ref().and_then(|key| self.by_key.get(key));
        let made = by_key.or_else(|| self.by_line.get(&row.line))?;
        Some(if made.hash != row.hash {
            RowCheck::KeyReused
        } else if made.line == Some(row.line) {
            RowCheck::Good(None)
        } else {
            RowCheck::Duplicate(made.push.clone())
        })
    }
}

/// The users of `rows` by our identifiers and by theirs, as the parameters of the two statements.
fn asked(rows: &[NewRow]) -> [(&'static Statement, Rows); 2] {
    let (mut by_id, mut by_external_id) = (Rows::default(), Rows::default());
    for (n, row) in (0..).zip(rows) {
        match &row.user {
            UserRef::Id(user) => by_id.row().int(n).text(user.as_str()),
            UserRef::External(user) => by_external_id.row().int(n).text(user),
        };
    }
    [(&BY_ID, by_id), (&BY_EXTERNAL_ID, by_external_id)]
}

fn keys_of(rows: &[NewRow]) -> Vec<&String> {
    rows.iter().filter_map(|row| row.key.as_ref()).collect()
}

fn judge(n: usize, row: &NewRow, known: &Known, users: &Users) -> RowCheck {
    known.check(row).unwrap_or_else(|| match users.get(&n) {
        None => RowCheck::NoUser,
        Some((user, UserStatus::Active)) => RowCheck::Good(Some(user.clone())),
        Some((_, status)) => RowCheck::UserInactive(*status),
    })
}

/// `taken`: the last line that any upload of the batch has brought. Lines behind it can be known by their keys only.
async fn known(
    tx: &mut Tx,
    upload: &Upload,
    rows: &[NewRow],
    (first, last): (i64, i64),
    taken: i64,
) -> Result<Known, Error> {
    let batch = &upload.batch;
    let mut known = Known::default();
    if first <= taken {
        let args = [
            Arg::Text(batch.id.as_str()),
            Arg::Int(first),
            Arg::Int(last),
        ];
        known.note(Some(&batch.id), &tx.fetch(&KNOWN_LINES, &args).await?)?;
    }
    let keys = keys_of(rows);
    if !keys.is_empty() {
        let args = [Arg::Text(batch.store.as_str()), Arg::Text(&to_json(&keys))];
        known.note(Some(&batch.id), &tx.fetch(&KNOWN, &args).await?)?;
    }
    Ok(known)
}

fn add_to(rows: &mut Rows, row: &NewRow, user: &UserId) {
    let content = &row.content;
    rows.row()
        .text(row.id.as_str())
        .text(user.as_str())
        .text(content.relying_party.as_str())
        .text(content.kind.as_str())
        .text(to_json(&row.target))
        .text(row.nonce.as_str())
        .text(to_json(content))
        .text(row.content_hash.as_str())
        .maybe_text(row.key.as_deref())
        .text(row.hash.as_str())
        .maybe_text(row.correlation_id.as_deref())
        .int(row.line)
        .int(row.lifetime);
}

fn chunks_of(upload: &Upload, added: &[&NewRow], now: Millis) -> Vec<serde_json::Value> {
    let most = usize::try_from(upload.batch.chunk_rows).unwrap_or(1).max(1);
    let chunk = |part: &[&NewRow]| {
        let pushes: Vec<_> = part.iter().map(|row| &row.id).collect();
        let bytes: i64 = part.iter().map(|row| row.bytes).sum();
        let lifetime = part.iter().map(|row| row.lifetime).min();
        json!({"id": ChunkId::fresh(now), "pushes": to_json(&pushes), "line": part[0].line, "rows": part.len(), "bytes": bytes, "lifetime": lifetime})
    };
    added.chunks(most).map(chunk).collect()
}

impl Store {
    async fn users_of(&self, store: &StoreId, rows: &[NewRow]) -> Result<Users, Error> {
        let mut users = Users::default();
        for (statement, names) in asked(rows) {
            if names.count() > 0 {
                let args = [Arg::Text(store.as_str()), Arg::Rows(&names)];
                for row in self.db.fetch(statement, &args).await? {
                    let n = usize::try_from(row.int("n")?).map_err(|_| Error::Row("n"))?;
                    users.insert(n, (parsed(&row, "id")?, parsed(&row, "status")?));
                }
            }
        }
        Ok(users)
    }

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
        // Whoever is blocked from now on is found so by the claim.
        let users = self.users_of(&batch.store, rows).await?;
        // What is released is on the disk, by the commit of its release; and the upload is answered after one of its own.
        let mut tx = self.db.begin_repeatable_later().await?;
        let args = [
            Arg::Text(batch.id.as_str()),
            Arg::Text(&upload.token),
            Arg::Int(now),
        ];
        let guard = tx.fetch(&GUARD, &args).await?;
        let Some(guard) = guard.first() else {
            return Ok(None);
        };
        let taken = guard.int("lines")?;
        let before = known(&mut tx, upload, rows, (first, last), taken).await?;
        let mut checks: Vec<_> = rows
            .iter()
            .enumerate()
            .map(|(n, row)| judge(n, row, &before, &users))
            .collect();
        let mut wanted = Rows::default();
        let mut added = HashSet::new();
        for (row, check) in rows.iter().zip(&checks) {
            if let RowCheck::Good(Some(user)) = check {
                add_to(&mut wanted, row, user);
                added.insert(row.id.as_str());
            }
        }
        if !add(&mut tx, upload, &wanted, now).await? {
            // The same key twice in this part, or somebody else took it at this moment.
            let there = which(&mut tx, &added).await?;
            added.retain(|id| there.contains(*id));
            let before = known(&mut tx, upload, rows, (first, last), last).await?;
            for (row, check) in rows.iter().zip(&mut checks) {
                if matches!(check, RowCheck::Good(Some(_))) && !added.contains(row.id.as_str()) {
                    *check = before.check(row).unwrap_or(RowCheck::KeyReused);
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
        record(&mut tx, upload, &new, &refusals, (first, last), now)?;
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
        let mut known = Known::default();
        let keys = keys_of(rows);
        if !keys.is_empty() {
            let args = [Arg::Text(store.as_str()), Arg::Text(&to_json(&keys))];
            known.note(None, &self.db.fetch(&KNOWN, &args).await?)?;
        }
        let users = self.users_of(store, rows).await?;
        let checks = rows
            .iter()
            .enumerate()
            .map(|(n, row)| judge(n, row, &known, &users));
        Ok(checks.collect())
    }
}

/// Adds pushes. `false`: not all of them were new.
async fn add(tx: &mut Tx, upload: &Upload, wanted: &Rows, now: Millis) -> Result<bool, Error> {
    if wanted.count() == 0 {
        return Ok(true);
    }
    let args = [
        Arg::Text(upload.batch.store.as_str()),
        Arg::Text(Lane::Bulk.as_str()),
        Arg::Text(upload.batch.id.as_str()),
        Arg::Int(now),
        Arg::Int(now + HOLD),
        Arg::Rows(wanted),
    ];
    let added = tx.execute(&ADD, &args).await?;
    Ok(added == wanted.count() as u64)
}

/// Those of the pushes that are there.
async fn which(tx: &mut Tx, pushes: &HashSet<&str>) -> Result<HashSet<String>, Error> {
    let rows = tx.fetch(&WHICH, &[Arg::Text(&to_json(pushes))]).await?;
    rows.iter().map(|row| row.text("id")).collect()
}

/// The chunks of the new pushes, the refusals, and the batch's counts.
fn record(
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
            Arg::Int(now + HOLD),
        ];
        tx.send(&ADD_CHUNKS, &args)?;
    }
    let args = [Arg::Text(id), Arg::Int(first), Arg::Int(last)];
    tx.send(&FORGET, &args)?;
    if !refusals.is_empty() {
        let rows: Vec<_> = refusals
            .iter()
            .map(|one| json!({"line": one.line, "key": one.key, "duplicate_of": one.duplicate_of, "faults": one.faults}))
            .collect();
        let args = [Arg::Text(&to_json(&rows)), Arg::Text(id)];
        tx.send(&REFUSE, &args)?;
    }
    let bytes = new.iter().map(|row| row.bytes).sum();
    let args = [
        Arg::Text(id),
        Arg::Int(last),
        Arg::Int(new.len() as i64),
        Arg::Int(bytes),
    ];
    tx.send(&COUNT, &args)
}
