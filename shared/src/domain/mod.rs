//! The domain: what a push is and how it may change. No I/O, no clock, no randomness of its own.

pub mod push;
pub mod state;

pub use push::{Content, Field, Kind, Outcome, Target};
pub use state::{AddressState, DeliveryState, DeviceState, PushState, UserStatus};
