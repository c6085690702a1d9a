//! Relay, and to come: fan-out, providers, sweeper and the wait-on-push activity.

pub mod push;
pub mod relay;
