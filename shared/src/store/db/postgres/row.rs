//! Rows as they come over the wire, read when somebody asks for a column.

use super::Failure;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, RowDescriptionBody};
use std::ops::Range;
use std::sync::Arc;
use tokio_postgres::types::{FromSql, Type};

/// The columns of a statement's rows.
pub(super) type Columns = Arc<[Column]>;

pub(super) struct Column {
    name: String,
    kind: Type,
}

pub(super) fn columns(described: &RowDescriptionBody) -> Result<Columns, Failure> {
    let columns = described.fields().map(|field| {
        Ok(Column {
            name: field.name().to_owned(),
            kind: Type::from_oid(field.type_oid()).unwrap_or(Type::UNKNOWN),
        })
    });
    Ok(columns.collect::<Vec<_>>()?.into())
}

/// One row.
pub struct PostgresRow {
    columns: Columns,
    data: DataRowBody,
    places: Vec<Option<Range<usize>>>,
}

impl PostgresRow {
    pub(super) fn of(columns: &Columns, data: DataRowBody) -> Result<Self, Failure> {
        let places = data.ranges().collect()?;
        Ok(Self {
            columns: Arc::clone(columns),
            data,
            places,
        })
    }

    /// The value of a column.
    pub(in super::super) fn get<'a, T: FromSql<'a>>(&'a self, name: &str) -> Result<T, Failure> {
        let unlike = || Failure::Column(name.to_owned());
        let mut all = self.columns.iter().zip(&self.places);
        let (column, place) = all
            .find(|(column, _)| column.name == name)
            .ok_or_else(unlike)?;
        let raw = match place {
            Some(place) => Some(self.data.buffer().get(place.clone()).ok_or_else(unlike)?),
            None => None,
        };
        if !T::accepts(&column.kind) {
            return Err(unlike());
        }
        T::from_sql_nullable(&column.kind, raw).map_err(|_| unlike())
    }
}
