//! What every role of Countersign shares: the domain (no I/O), what goes on the wire, and the [`broker`] port.
//!
//! Arrows point one way: `domain` and `id` import nothing of ours; `message` knows identifiers; `broker` knows `message`.

pub mod broker;
pub mod clock;
pub mod domain;
pub mod id;
pub mod message;
pub mod secret;
