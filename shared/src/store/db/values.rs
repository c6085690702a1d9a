//! What goes into a statement, and what comes out of it.

use super::sqlite::{SqliteRow, unlike};
use super::{Error, PostgresRow};
use rusqlite::types::Value;

/// A parameter.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// A text.
    Text(&'a str),
    /// A text or NULL.
    MaybeText(Option<&'a str>),
    /// A number.
    Int(i64),
    /// A number or NULL.
    MaybeInt(Option<i64>),
    /// The rows of the mark `{rows:…}`: the last parameter.
    Rows(&'a Rows),
}

/// One value of many rows.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Text(Option<String>),
    Int(Option<i64>),
}

/// Many rows, all of the same columns: for large sets cheaper than one JSON text, on both databases.
#[derive(Default)]
pub struct Rows {
    pub(super) cells: Vec<Cell>,
    count: usize,
}

impl Rows {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Begins the next row.
    pub fn row(&mut self) -> &mut Self {
        self.count += 1;
        self
    }

    /// A text.
    pub fn text(&mut self, text: impl Into<String>) -> &mut Self {
        self.maybe_text(Some(text))
    }

    /// A text or NULL.
    pub fn maybe_text(&mut self, text: Option<impl Into<String>>) -> &mut Self {
        self.cells.push(Cell::Text(text.map(Into::into)));
        self
    }

    /// A number.
    pub fn int(&mut self, number: i64) -> &mut Self {
        self.maybe_int(Some(number))
    }

    /// A number or NULL.
    pub fn maybe_int(&mut self, number: Option<i64>) -> &mut Self {
        self.cells.push(Cell::Int(number));
        self
    }
}

/// One row of an answer.
pub enum Row {
    /// From PostgreSQL.
    Postgres(PostgresRow),
    /// From SQLite.
    Sqlite(SqliteRow),
}

impl Row {
    /// A text column.
    pub fn text(&self, column: &str) -> Result<String, Error> {
        match self {
            Self::Postgres(row) => Ok(row.get(column)?),
            Self::Sqlite(row) => row
                .text(column)?
                .ok_or_else(|| unlike(column, &Value::Null)),
        }
    }

    /// A text column that may be NULL.
    pub fn maybe_text(&self, column: &str) -> Result<Option<String>, Error> {
        match self {
            Self::Postgres(row) => Ok(row.get(column)?),
            Self::Sqlite(row) => row.text(column),
        }
    }

    /// A number column.
    pub fn int(&self, column: &str) -> Result<i64, Error> {
        match self {
            Self::Postgres(row) => Ok(row.get(column)?),
            Self::Sqlite(row) => row.int(column)?.ok_or_else(|| unlike(column, &Value::Null)),
        }
    }

    /// A number column that may be NULL.
    pub fn maybe_int(&self, column: &str) -> Result<Option<i64>, Error> {
        match self {
            Self::Postgres(row) => Ok(row.get(column)?),
            Self::Sqlite(row) => row.int(column),
        }
    }
}
