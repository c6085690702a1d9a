//! Why PostgreSQL did not do what was asked.

use postgres_protocol::message::backend::ErrorResponseBody;
use std::io;

/// An error of the server or of the way to it. PostgreSQL quotes values of rows in the details of an error, so they are left out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server's answer.
    #[error("{message} (SQLSTATE {code})")]
    Refused {
        /// As in appendix A of PostgreSQL's manual.
        code: String,
        /// Its first line.
        message: String,
    },
    /// No connection could be made.
    #[error("no connection to the database")]
    Connect(#[source] tokio_postgres::Error),
    /// The connection has ended, or what came over it cannot be read.
    #[error("the connection to the database has ended")]
    Ended(#[source] io::Error),
    /// A statement before it has failed, or the caller of it was gone.
    #[error("the transaction has failed before")]
    Failed,
    /// A statement or a parameter cannot be sent.
    #[error("a parameter is too long")]
    Parameter,
    /// A column is not there, or is not of the kind that was expected.
    #[error("column {0} is not what was expected")]
    Column(String),
}

impl Failure {
    /// Will the same fail again?
    pub(in super::super) fn is_permanent(&self) -> bool {
        match self {
            // Bad data, broken constraints, bad statements.
            Self::Refused { code, .. } => ["22", "23", "42"]
                .iter()
                .any(|class| code.starts_with(class)),
            Self::Parameter | Self::Column(_) => true,
            Self::Connect(_) | Self::Ended(_) | Self::Failed => false,
        }
    }

    /// Does the connection know its statements in a way that is not the server's any more? A migration may have changed their columns
    /// (`feature_not_supported`), or something between has forgotten them (`invalid_sql_statement_name`).
    pub(super) fn is_of_old_statements(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "0A000" || code == "26000")
    }

    pub(super) fn ended(why: &'static str) -> Self {
        Self::Ended(io::Error::new(io::ErrorKind::ConnectionAborted, why))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Ended(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refused) => Self::Refused {
                code: refused.code().code().to_owned(),
                message: refused.message().to_owned(),
            },
            None => Self::Connect(error),
        }
    }
}

impl From<ErrorResponseBody> for Failure {
    fn from(body: ErrorResponseBody) -> Self {
        use fallible_iterator::FallibleIterator as _;
        let (mut code, mut message) = (String::new(), String::new());
        let mut fields = body.fields();
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => code = text(),
                b'M' => message = text(),
                _ => {}
            }
        }
        Self::Refused { code, message }
    }
}
