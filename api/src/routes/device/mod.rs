//! What devices call (`docs/device-protocol.md`).

pub(crate) mod address;
pub(crate) mod answer;
pub(crate) mod notices;
pub(crate) mod prompts;
pub(crate) mod siblings;
