//! The gateway and the phones on real sockets.
#![expect(
    clippy::unwrap_used,
    reason = "clippy's exception for tests does not reach the helpers of an integration test"
)]

mod api;
mod apns;
mod client;
mod faults;
mod fcm;
mod fleet;
mod phone;
mod vectors;
