//! The tokens that prove to push providers who sends: one for each key, shared by every process.
//!
//! The right to make the next one is a lease, given out and used up by compare-and-set: a token is written only by who holds the lease
//! at that moment.

use super::Store;
use super::db::{Arg, Error, Statement};
use super::requests::SKEW;
use crate::clock::Millis;

static LOOK: Statement = Statement::new(
    "SELECT sealed, issued_at, expires_at, not_before FROM push_tokens WHERE id = $1",
);
// A lease that lasts longer than leases do was dated by a clock that was wrong; its holder cannot write once another one has it.
static LEASE: Statement = Statement::new(
    "INSERT INTO push_tokens (id, issued_at, expires_at, not_before, holder, lease_until, forget_at) VALUES ($1, 0, 0, 0, $2, $5, $6)
     ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, lease_until = excluded.lease_until, forget_at = excluded.forget_at
     WHERE push_tokens.issued_at = $3 AND push_tokens.not_before <= $4
       AND (push_tokens.lease_until <= $4 OR push_tokens.lease_until > $7)
     RETURNING id",
);
static PUT: Statement = Statement::new(
    "UPDATE push_tokens SET sealed = $3, issued_at = $4, expires_at = $5, holder = NULL, lease_until = 0, forget_at = $7,
       not_before = CASE WHEN not_before > $6 THEN not_before ELSE $6 END
     WHERE id = $1 AND holder = $2 RETURNING id",
);
static GIVE_BACK: Statement = Statement::new(
    "UPDATE push_tokens SET holder = NULL, lease_until = 0 WHERE id = $1 AND holder = $2",
);
static NOT_BEFORE: Statement = Statement::new(
    "INSERT INTO push_tokens (id, issued_at, expires_at, not_before, lease_until, forget_at) VALUES ($1, 0, 0, $2, 0, $3)
     ON CONFLICT (id) DO UPDATE SET not_before = excluded.not_before WHERE push_tokens.not_before < excluded.not_before",
);
static NOT_AFTER: Statement =
    Statement::new("UPDATE push_tokens SET not_before = $2 WHERE id = $1 AND not_before > $2");
pub(super) static FORGET: Statement = Statement::new(
    "DELETE FROM push_tokens WHERE id IN (SELECT id FROM push_tokens WHERE forget_at < $1 LIMIT $2)",
);

/// How long a row is kept after its token or its lease is over: longer than any gap between two tokens.
const KEPT: Millis = 24 * 3_600_000;

/// What is known of one key's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushToken {
    /// The token, sealed; nothing before the first.
    pub sealed: Option<String>,
    /// When it was made; 0 before the first.
    pub issued_at: Millis,
    /// When the provider refuses it.
    pub expires_at: Millis,
    /// No new one before.
    pub not_before: Millis,
}

impl Store {
    /// What is known of a key's token.
    pub async fn push_token(&self, key: &str) -> Result<Option<PushToken>, Error> {
        let rows = self.db.fetch(&LOOK, &[Arg::Text(key)]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        Ok(Some(PushToken {
            sealed: row.maybe_text("sealed")?,
            issued_at: row.int("issued_at")?,
            expires_at: row.int("expires_at")?,
            not_before: row.int("not_before")?,
        }))
    }

    /// Leases the right to make a key's next token to `holder`, where the last one is that of `seen`, nobody else has the lease and the time
    /// has come.
    pub async fn lease_push_token(
        &self,
        key: &str,
        holder: &str,
        seen: Millis,
        now: Millis,
        until: Millis,
    ) -> Result<bool, Error> {
        let args = [
            Arg::Text(key),
            Arg::Text(holder),
            Arg::Int(seen),
            Arg::Int(now),
            Arg::Int(until),
            Arg::Int(until + KEPT),
            Arg::Int(until + SKEW),
        ];
        Ok(!self.db.write(&LEASE, &args).await?.is_empty())
    }

    /// Writes a token and ends the lease; `false`, and nothing written, where `holder` does not have it any more.
    pub async fn put_push_token(
        &self,
        key: &str,
        holder: &str,
        token: &PushToken,
    ) -> Result<bool, Error> {
        let args = [
            Arg::Text(key),
            Arg::Text(holder),
            Arg::MaybeText(token.sealed.as_deref()),
            Arg::Int(token.issued_at),
            Arg::Int(token.expires_at),
            Arg::Int(token.not_before),
            Arg::Int(token.expires_at + KEPT),
        ];
        Ok(!self.db.write(&PUT, &args).await?.is_empty())
    }

    /// Ends a lease without a token.
    pub async fn give_back_push_token(&self, key: &str, holder: &str) -> Result<(), Error> {
        let args = [Arg::Text(key), Arg::Text(holder)];
        self.db.write(&GIVE_BACK, &args).await.map(drop)
    }

    /// No new token of this key before `at`, or before what is said already where that is later.
    pub async fn push_token_not_before(&self, key: &str, at: Millis) -> Result<(), Error> {
        let args = [Arg::Text(key), Arg::Int(at), Arg::Int(at + KEPT)];
        self.db.write(&NOT_BEFORE, &args).await.map(drop)
    }

    /// Lets a new token of this key be made from `at` on, or from what is said already where that is sooner.
    pub async fn push_token_not_after(&self, key: &str, at: Millis) -> Result<(), Error> {
        let args = [Arg::Text(key), Arg::Int(at)];
        self.db.write(&NOT_AFTER, &args).await.map(drop)
    }
}
