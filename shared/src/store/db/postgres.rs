//! Statements and their parameters as PostgreSQL's driver wants them.

use super::values::Cell;
use super::{Arg, Error, Row, Rows, Statement};
use sqlx::AssertSqlSafe;

type PgQuery<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

pub(super) fn query<'q>(statement: &'q Statement, args: &[Arg<'_>]) -> PgQuery<'q> {
    // The texts are constants of this crate; values travel as parameters only.
    let mut query = sqlx::query(AssertSqlSafe(statement.postgres().to_owned()));
    for arg in args {
        query = match *arg {
            Arg::Text(v) => query.bind(v.to_owned()),
            Arg::MaybeText(v) => query.bind(v.map(str::to_owned)),
            Arg::Int(v) => query.bind(v),
            Arg::MaybeInt(v) => query.bind(v),
            Arg::Rows(rows) => with_columns(query, statement, rows),
        };
    }
    query
}

/// Binds each column as an array.
fn with_columns<'q>(mut query: PgQuery<'q>, statement: &Statement, rows: &Rows) -> PgQuery<'q> {
    let numbers = statement.rows().map_or(&[][..], |mark| &mark.numbers);
    for (column, number) in numbers.iter().enumerate() {
        let cells = rows.cells.iter().skip(column).step_by(numbers.len());
        query = if *number {
            let of = |cell: &Cell| match cell {
                Cell::Int(v) => *v,
                Cell::Text(_) => None,
            };
            query.bind(cells.map(of).collect::<Vec<Option<i64>>>())
        } else {
            let of = |cell: &Cell| match cell {
                Cell::Text(v) => v.clone(),
                Cell::Int(_) => None,
            };
            query.bind(cells.map(of).collect::<Vec<Option<String>>>())
        };
    }
    query
}

pub(super) async fn fetch(
    connection: &mut sqlx::PgConnection,
    statement: &Statement,
    args: &[Arg<'_>],
) -> Result<Vec<Row>, Error> {
    let rows = query(statement, args).fetch_all(connection).await?;
    Ok(rows.into_iter().map(Row::Postgres).collect())
}
