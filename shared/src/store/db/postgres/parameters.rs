//! Parameters as they go over the wire.

use super::super::values::Cell;
use super::super::{Arg, Rows, Statement};
use super::Failure;
use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use tokio_postgres::types::{ToSql, Type};

/// Both sides write numbers as they are, not as texts.
const BINARY: [i16; 1] = [1];

/// One parameter: of a list of rows each column is one.
enum Parameter<'a> {
    Text(Option<&'a str>),
    Int(Option<i64>),
    Texts(Vec<Option<&'a str>>),
    Ints(Vec<Option<i64>>),
}

impl Parameter<'_> {
    fn kind(&self) -> Type {
        match self {
            Self::Text(_) => Type::TEXT,
            Self::Int(_) => Type::INT8,
            Self::Texts(_) => Type::TEXT_ARRAY,
            Self::Ints(_) => Type::INT8_ARRAY,
        }
    }

    fn write(
        &self,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let kind = self.kind();
        let written = match self {
            Self::Text(v) => v.to_sql(&kind, out),
            Self::Int(v) => v.to_sql(&kind, out),
            Self::Texts(v) => v.to_sql(&kind, out),
            Self::Ints(v) => v.to_sql(&kind, out),
        };
        Ok(match written? {
            tokio_postgres::types::IsNull::Yes => IsNull::Yes,
            tokio_postgres::types::IsNull::No => IsNull::No,
        })
    }
}

/// Those of a statement.
pub(super) struct Parameters<'a>(Vec<Parameter<'a>>);

impl<'a> Parameters<'a> {
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    pub(super) fn of(statement: &Statement, args: &[Arg<'a>]) -> Self {
        let mut all = Vec::with_capacity(args.len());
        for arg in args {
            match *arg {
                Arg::Text(v) => all.push(Parameter::Text(Some(v))),
                Arg::MaybeText(v) => all.push(Parameter::Text(v)),
                Arg::Int(v) => all.push(Parameter::Int(Some(v))),
                Arg::MaybeInt(v) => all.push(Parameter::Int(v)),
                Arg::Rows(rows) => columns(statement, rows, &mut all),
            }
        }
        Self(all)
    }

    /// Has the server read a statement with parameters of these kinds.
    pub(super) fn parse(&self, name: &str, text: &str, out: &mut BytesMut) -> Result<(), Failure> {
        let kinds = self.0.iter().map(|one| one.kind().oid());
        frontend::parse(name, text, kinds, out).map_err(|_| Failure::Parameter)
    }

    /// Binds a statement to them.
    pub(super) fn bind(&self, name: &str, out: &mut BytesMut) -> Result<(), Failure> {
        frontend::bind("", name, BINARY, &self.0, Parameter::write, BINARY, out)
            .map_err(|_| Failure::Parameter)
    }
}

/// Each column as an array.
fn columns<'a>(statement: &Statement, rows: &'a Rows, all: &mut Vec<Parameter<'a>>) {
    let numbers = statement.rows().map_or(&[][..], |mark| &mark.numbers);
    for (column, number) in numbers.iter().enumerate() {
        let cells = rows.cells.iter().skip(column).step_by(numbers.len());
        all.push(if *number {
            Parameter::Ints(
                cells
                    .map(|cell| match cell {
                        Cell::Int(v) => *v,
                        Cell::Text(_) => None,
                    })
                    .collect(),
            )
        } else {
            Parameter::Texts(
                cells
                    .map(|cell| match cell {
                        Cell::Text(v) => v.as_deref(),
                        Cell::Int(_) => None,
                    })
                    .collect(),
            )
        });
    }
}
