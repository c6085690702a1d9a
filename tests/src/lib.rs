//! The ground of the end-to-end tests: real processes of the real program, on both footings, with simulated providers and phones.
//!
//! `scripts/test` provides PostgreSQL, RabbitMQ and the program (`COUNTERSIGN_BIN`).

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod canary;
pub mod musts;
mod process;
mod tap;
mod upload;
mod world;

pub use process::Process;
pub use tap::Tap;
pub use upload::{Upload, payslips};
pub use world::{Footing, RP, World, control, footings, on_each, raw, until};
