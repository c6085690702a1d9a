//! How many workers there are: each says every few seconds that it lives. What is shared evenly among them is shared by this number.

use super::Store;
use super::db::{Arg, Error, Statement};
use crate::clock::Millis;

static SAY: Statement = Statement::new(
    "INSERT INTO leases (name, holder, until_at) VALUES ('worker/' || $1, $1, $2)
     ON CONFLICT (name) DO UPDATE SET until_at = excluded.until_at",
);
static COUNT: Statement = Statement::new(
    "SELECT COUNT(*) AS n FROM leases WHERE name >= 'worker/' AND name < 'worker0' AND until_at > $1",
);
static FORGET: Statement = Statement::new(
    "DELETE FROM leases WHERE name >= 'worker/' AND name < 'worker0' AND until_at <= $1",
);
static LEAVE: Statement = Statement::new("DELETE FROM leases WHERE name = 'worker/' || $1");

/// How long the row of a worker that died is kept: clocks may differ.
const KEPT: Millis = 3_600_000;

impl Store {
    /// Says that `worker` lives until then, unless it says so again, and how many workers live.
    pub async fn count_workers(
        &self,
        worker: &str,
        now: Millis,
        until: Millis,
    ) -> Result<i64, Error> {
        self.db.write(&FORGET, &[Arg::Int(now - KEPT)]).await?;
        let args = [Arg::Text(worker), Arg::Int(until)];
        self.db.write(&SAY, &args).await?;
        let rows = self.db.fetch(&COUNT, &[Arg::Int(now)]).await?;
        rows.first().map_or(Ok(1), |row| row.int("n"))
    }

    /// Says that `worker` is gone.
    pub async fn leave_workers(&self, worker: &str) -> Result<(), Error> {
        self.db.write(&LEAVE, &[Arg::Text(worker)]).await.map(drop)
    }
}
