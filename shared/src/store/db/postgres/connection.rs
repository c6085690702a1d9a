//! One connection. Whoever has it writes to it and reads from it: no other task has to be woken for a statement to go out or for its rows to come in.
//!
//! Statements are drafted and go out together, behind them one `Sync`: the server runs them in order and answers all at once. Behind one that fails it
//! skips the others, so that nothing that stands behind a refused `BEGIN` is run outside of a transaction (postgresql.org/docs/17/protocol-flow.html,
//! 53.2.3 and 53.2.4).

use super::super::statement::{Place, place};
use super::super::{Arg, Row, Statement};
use super::Failure;
use super::parameters::Parameters;
use super::row::{self, Columns, PostgresRow};
use super::wire::{Stream, Way};
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio_util::io::{poll_read_buf, poll_write_buf};

/// How much is read at once.
const READ: usize = 16 * 1024;
/// How large a buffer may stay.
const KEPT: usize = 256 * 1024;

/// A connection to a server.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    /// What goes out next.
    draft: BytesMut,
    /// What the answers to it will be.
    drafted: Vec<Drafted>,
    /// What is going out.
    out: BytesMut,
    read: BytesMut,
    /// For how many `Sync` the server owes a word.
    owed: usize,
    state: State,
    /// Statements that the server has read.
    known: HashMap<Place, Known>,
    /// How many names of statements were used.
    names: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    InTransaction,
    Ended,
}

struct Known {
    name: Arc<str>,
    columns: Columns,
}

/// A statement of a draft.
struct Drafted {
    key: Place,
    name: Arc<str>,
    /// `None` until the server has told.
    columns: Option<Columns>,
}

/// What came of a statement.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) rows: Vec<Row>,
    /// How many rows it has read or written.
    pub(super) count: u64,
}

impl Connection {
    pub(super) async fn open(way: &Way) -> Result<Self, Failure> {
        Ok(Self {
            stream: way.open().await?,
            draft: BytesMut::new(),
            drafted: Vec::new(),
            out: BytesMut::new(),
            read: BytesMut::new(),
            owed: 0,
            state: State::Idle,
            known: HashMap::new(),
            names: 0,
        })
    }

    /// Has everything been answered that was asked, outside of a transaction?
    pub(super) fn is_at_rest(&self) -> bool {
        self.owed == 0 && self.state == State::Idle
    }

    /// Has the server not ended it, as far as is known here? Asks nobody.
    pub(super) fn is_open(&mut self) -> bool {
        if self.has_ended() {
            self.state = State::Ended;
        }
        self.state != State::Ended
    }

    fn has_ended(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match Message::parse(&mut self.read) {
                // It says why it ends.
                Ok(Some(Message::ErrorResponse(_))) | Err(_) => return true,
                Ok(Some(_)) => continue,
                Ok(None) => {}
            }
            match self.poll_progress(&mut context) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return true,
            }
        }
    }

    /// Drafts a statement. Only the first time the server is told how it reads.
    pub(super) fn draft(&mut self, statement: &Statement, args: &[Arg<'_>]) -> Result<(), Failure> {
        let parameters = Parameters::of(statement, args);
        self.draft_one(statement.place(), statement.postgres(), &parameters)
    }

    /// Drafts words that have no parameters.
    pub(super) fn draft_words(&mut self, words: &'static str) -> Result<(), Failure> {
        self.draft_one(place(words), words, &Parameters::none())
    }

    fn draft_one(
        &mut self,
        key: Place,
        text: &str,
        parameters: &Parameters<'_>,
    ) -> Result<(), Failure> {
        let before = self.draft.len();
        let drafted = if let Some(known) = self.known.get(&key) {
            Drafted {
                key,
                name: Arc::clone(&known.name),
                columns: Some(Arc::clone(&known.columns)),
            }
        } else {
            // A name of its own each time: whether the server has taken an earlier one is not known where nobody waited for its answer.
            self.names += 1;
            Drafted {
                key,
                name: format!("s{}", self.names).into(),
                columns: None,
            }
        };
        let written = drafted.write(text, parameters, &mut self.draft);
        if written.is_err() {
            self.draft.truncate(before);
        }
        written?;
        self.drafted.push(drafted);
        Ok(())
    }

    /// Sends what was drafted and gives the answer to each statement, or the first error.
    pub(super) async fn go(&mut self) -> Result<Vec<Answer>, Failure> {
        if self.state == State::Ended || self.owed > 0 {
            return Err(Failure::ended("an answer is missing"));
        }
        frontend::sync(&mut self.draft);
        let size = self.draft.len();
        std::mem::swap(&mut self.draft, &mut self.out);
        self.owed += 1;
        let drafted = std::mem::take(&mut self.drafted);
        let answered = self.answers(drafted).await;
        if answered.as_ref().is_err_and(Failure::is_of_the_connection) {
            self.state = State::Ended;
        }
        if size > KEPT {
            self.out = BytesMut::new();
        }
        if self.read.is_empty() && self.read.capacity() > KEPT {
            self.read = BytesMut::new();
        }
        answered
    }

    /// Forgets what was only drafted, waits for what is still to come, and leaves the transaction, if there is one.
    pub(super) async fn come_to_rest(&mut self) -> Result<(), Failure> {
        self.forget();
        while self.owed > 0 {
            self.word().await?;
        }
        if self.state == State::InTransaction {
            self.draft_words("ROLLBACK")?;
            self.go().await?;
        }
        Ok(())
    }

    /// Forgets what was only drafted.
    pub(super) fn forget(&mut self) {
        self.draft.clear();
        self.drafted.clear();
    }

    async fn answers(&mut self, mut drafted: Vec<Drafted>) -> Result<Vec<Answer>, Failure> {
        let mut answers = Vec::with_capacity(drafted.len());
        let mut rows = Vec::new();
        let mut refused = None;
        while self.owed > 0 {
            let of = answers.len();
            let word = match self.word().await {
                Ok(word) => word,
                Err(lost) => {
                    self.state = State::Ended;
                    // The server may have said why it ends the connection.
                    return Err(refused.unwrap_or(lost));
                }
            };
            match word {
                Message::RowDescription(described) => {
                    let columns = row::columns(&described)?;
                    self.learn(drafted.get_mut(of), columns)?;
                }
                Message::NoData => self.learn(drafted.get_mut(of), Columns::from([]))?,
                Message::DataRow(data) => {
                    let columns = drafted.get(of).and_then(|one| one.columns.as_ref());
                    let columns = columns.ok_or_else(|| Failure::ended("a row of nothing"))?;
                    rows.push(Row::Postgres(PostgresRow::of(columns, data)?));
                }
                Message::CommandComplete(done) => {
                    let count = done.tag()?.rsplit(' ').next();
                    answers.push(Answer {
                        rows: std::mem::take(&mut rows),
                        count: count.and_then(|n| n.parse().ok()).unwrap_or_default(),
                    });
                }
                Message::EmptyQueryResponse => answers.push(Answer::default()),
                Message::ErrorResponse(error) => refused = Some(Failure::from(error)),
                _ => {}
            }
        }
        match refused {
            Some(why) => Err(why),
            None => Ok(answers),
        }
    }

    fn learn(&mut self, drafted: Option<&mut Drafted>, columns: Columns) -> Result<(), Failure> {
        let drafted = drafted.ok_or_else(|| Failure::ended("columns of nothing"))?;
        let known = Known {
            name: Arc::clone(&drafted.name),
            columns: Arc::clone(&columns),
        };
        drafted.columns = Some(columns);
        self.known.insert(drafted.key, known);
        Ok(())
    }

    /// The server's next word.
    async fn word(&mut self) -> Result<Message, Failure> {
        loop {
            if let Some(word) = Message::parse(&mut self.read)? {
                if let Message::ReadyForQuery(ready) = &word {
                    self.owed = self.owed.saturating_sub(1);
                    self.state = match ready.status() {
                        b'I' => State::Idle,
                        _ => State::InTransaction,
                    };
                }
                return Ok(word);
            }
            poll_fn(|context| self.poll_progress(context)).await?;
        }
    }

    /// Writes as much as goes out, and reads what has come: a server that waits for its answers to be read takes nothing more.
    fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut *self.stream);
        while !self.out.is_empty() {
            match poll_write_buf(stream.as_mut(), context, &mut self.out)? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        if self.owed > 0 {
            // Behind TLS a part may be left of what it has taken.
            let _left = stream.as_mut().poll_flush(context)?;
        }
        self.read.reserve(READ);
        match ready!(poll_read_buf(stream, context, &mut self.read))? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drafted {
    fn write(
        &self,
        text: &str,
        parameters: &Parameters<'_>,
        out: &mut BytesMut,
    ) -> Result<(), Failure> {
        if self.columns.is_none() {
            parameters.parse(&self.name, text, out)?;
            frontend::describe(b'S', &self.name, out).map_err(|_| Failure::Parameter)?;
        }
        parameters.bind(&self.name, out)?;
        frontend::execute("", 0, out).map_err(|_| Failure::Parameter)
    }
}

impl Drop for Connection {
    /// Says that it ends, as far as that goes without waiting: a server notes who leaves without a word.
    fn drop(&mut self) {
        if self.is_at_rest() && self.out.is_empty() {
            frontend::terminate(&mut self.out);
            let mut context = Context::from_waker(Waker::noop());
            let mut stream = Pin::new(&mut *self.stream);
            let _sent = poll_write_buf(stream.as_mut(), &mut context, &mut self.out);
            let _flushed = stream.poll_flush(&mut context);
        }
    }
}
