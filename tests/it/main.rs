//! End to end, on both footings: every push is sent over HTTP to real processes, reaches simulated providers over HTTP/2 and TLS, and is answered
//! by a phone that holds a real key.

#![expect(clippy::unwrap_used, reason = "a test may panic: that is its failing")]

mod answers;
mod api;
mod approvals;
mod audit;
mod batches;
mod delivery;
mod dev;
mod devices;
mod enrolment;
mod keys;
mod kinds;
mod payments;
mod policies;
mod process;
mod profiles;
mod proofs;
mod queues;
mod receipts;
mod replays;
