//! A transaction: its statements go out when somebody waits for one of them, together with those before it that nobody waits for, and with `BEGIN` and
//! `COMMIT` where they stand beside them.

use super::super::{Arg, Asked, Statement};
use super::connection::Answer;
use super::lease::Lease;
use super::{Failure, Row};

/// An open transaction. Dropping it rolls back.
pub(in super::super) struct Transaction {
    lease: Lease,
    has_begun: bool,
    has_failed: bool,
}

impl Transaction {
    pub(super) fn of(lease: Lease) -> Self {
        Self {
            lease,
            has_begun: false,
            has_failed: false,
        }
    }

    /// Runs statements and gives the rows of each.
    pub(in super::super) async fn fetch<const N: usize>(
        &mut self,
        asked: [Asked<'_>; N],
    ) -> Result<[Vec<Row>; N], Failure> {
        for (statement, args) in asked {
            self.send(statement, args)?;
        }
        let answers = self.go().await?;
        let before = answers.len().saturating_sub(N);
        let mut last = answers.into_iter().skip(before);
        Ok(std::array::from_fn(|_| {
            last.next().map(|answer| answer.rows).unwrap_or_default()
        }))
    }

    /// Runs a statement. Says how many rows it has written.
    pub(in super::super) async fn execute(
        &mut self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<u64, Failure> {
        self.send(statement, args)?;
        let answers = self.go().await?;
        Ok(answers.last().map_or(0, |answer| answer.count))
    }

    /// Runs a statement together with the next one that is waited for, at the latest with the commit: then its error is told.
    pub(in super::super) fn send(
        &mut self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<(), Failure> {
        if self.has_failed {
            return Err(Failure::Failed);
        }
        let connection = self.lease.connection()?;
        if !self.has_begun {
            connection.draft_words("BEGIN")?;
            self.has_begun = true;
        }
        let drafted = connection.draft(statement, args);
        self.has_failed = drafted.is_err();
        drafted
    }

    /// Runs a last statement and makes everything last.
    pub(in super::super) async fn fetch_last(
        mut self,
        statement: &Statement,
        args: &[Arg<'_>],
    ) -> Result<Vec<Row>, Failure> {
        self.send(statement, args)?;
        self.lease.connection()?.draft_words("COMMIT")?;
        let answers = self.go().await?;
        // The last answer is that to the commit.
        let last = answers.into_iter().nth_back(1);
        Ok(last.map(|answer| answer.rows).unwrap_or_default())
    }

    pub(in super::super) async fn commit(mut self) -> Result<(), Failure> {
        if self.has_failed {
            return Err(Failure::Failed);
        }
        if self.has_begun {
            self.lease.connection()?.draft_words("COMMIT")?;
            self.go().await?;
        }
        Ok(())
    }

    /// Sends what waits. Behind a statement that fails the others are not run, and nothing of the transaction lasts.
    async fn go(&mut self) -> Result<Vec<Answer>, Failure> {
        if self.has_failed {
            return Err(Failure::Failed);
        }
        // Until it is known to be otherwise: whoever waits here may be gone before.
        self.has_failed = true;
        let answers = self.lease.connection()?.go().await?;
        self.has_failed = false;
        Ok(answers)
    }
}
