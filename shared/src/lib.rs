//! What every role of Countersign shares: the domain (no I/O), what goes on the wire, and the two ports, [`store`] and [`broker`].
//!
//! Arrows point one way: `domain` and `id` import nothing of ours; `message` knows identifiers; `store` and `broker` know both.

pub mod audit;
pub mod broker;
pub mod clock;
pub mod courtesy;
pub mod crash;
pub mod crypto;
pub mod domain;
pub mod event;
pub mod gather;
pub mod id;
pub mod intake;
pub mod message;
pub mod payments;
pub mod receipt;
pub mod secret;
pub mod store;
pub mod wait;
