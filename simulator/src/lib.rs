//! What stands in for the outside world: APNs and FCM v1 on the wire, and virtual phones.
//!
//! The [`Gateway`] speaks HTTP/2 over TLS exactly as the two providers do and misbehaves on request; a phone holds a key,
//! fetches prompts and signs answers. Nothing here decides what a push means: that is the job of the code under test.

mod error;
pub mod gateway;
mod random;

pub use error::Error;
pub use gateway::{
    ApnsKey, ApnsReason, Counts, FcmCode, Gateway, GatewayOptions, Provider, Receipt, Script,
};
