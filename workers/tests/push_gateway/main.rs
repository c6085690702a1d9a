//! The providers on real sockets: against the simulator, and against a peer that speaks single frames.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod apns;
mod bed;
mod fcm;
mod pace;
mod pool;
mod tokens;
mod wire;
