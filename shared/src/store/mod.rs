//! The store port: the only SQL. The database is the truth; every row that promises a message is written in the
//! transaction of the state that it reports.

pub mod db;
mod outbox;

pub use db::{Db, Error};
pub use outbox::Outbox;
