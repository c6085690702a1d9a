//! Everything that works behind the API: the relay from the outbox to the broker, the dispatcher of batches, the fan-out to the providers, the
//! sweeper, and the wait-on-push activity.

mod batch;
pub mod census;
pub mod chainer;
mod credentials;
pub mod dispatcher;
pub mod fanout;
pub mod forwarder;
pub mod instances;
mod park;
pub mod push;
pub mod relay;
pub mod sweeper;
mod tokens;
pub mod waiter;

pub use credentials::Credentials;
pub use tokens::SharedTokens;
