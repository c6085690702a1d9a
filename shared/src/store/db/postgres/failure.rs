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
    /// Nobody listens there.
    #[error("the database cannot be reached")]
    Unreachable(#[source] io::Error),
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
            Self::Unreachable(_) | Self::Connect(_) | Self::Ended(_) | Self::Failed => false,
        }
    }

    /// Is the server about to start (`cannot_connect_now`), or has it no place for a moment (`too_many_connections`)?
    pub(super) fn is_of_the_moment(&self) -> bool {
        match self {
            Self::Unreachable(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Self::Refused { code, .. } => code == "57P03" || code == "53300",
            _ => false,
        }
    }

    /// Is another connection needed, because this one has ended or will refuse this again? A migration may have changed the columns of statements that this one knows (`feature_not_supported`), something
    /// between has forgotten them (`invalid_sql_statement_name`), or the server has become a standby (`read_only_sql_transaction`).
    pub(super) fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Refused { code, .. } => ["0A000", "26000", "25006"].contains(&code.as_str()),
            _ => true,
        }
    }

    /// What the server says of itself. Where data are bad it quotes them.
    fn refused(code: String, message: &str) -> Self {
        let message = if code.starts_with("22") {
            "a value is not what was expected"
        } else {
            message
        };
        Self::Refused {
            code,
            message: message.to_owned(),
        }
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
            Some(refused) => Self::refused(refused.code().code().to_owned(), refused.message()),
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
        Self::refused(code, &message)
    }
}
