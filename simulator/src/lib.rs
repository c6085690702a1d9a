//! What stands in for the outside world: APNs and FCM v1 on the wire, and virtual phones.
//!
//! The [`Gateway`] speaks HTTP/2 over TLS exactly as the two providers do and misbehaves on request; a [`Phone`] holds a key,
//! fetches prompts and signs answers; a [`Fleet`] wakes its phones when the gateway takes a push for them. Nothing here decides what a push means: that is the job of the code under test.

mod error;
pub mod fleet;
pub mod gateway;
pub mod phone;
mod random;
mod recent;

pub use error::Error;
pub use fleet::{Behaviour, Fleet, Rang};
pub use gateway::{
    ApnsKey, ApnsReason, Counts, FcmCode, Gateway, GatewayOptions, Provider, Receipt, Script, Share,
};
pub use phone::{Answered, Decision, Phone, Prompt};
