//! The domain: what a push is and how it may change. No I/O, no clock, no randomness of its own.

pub mod approval;
pub mod batch;
pub mod governor;
pub mod payments;
pub mod policy;
pub mod profile;
pub mod push;
pub mod state;

pub use approval::{ApprovalState, OnDenial, Quorum, Standing};
pub use batch::BatchState;
pub use governor::{OpenPrompts, Rules};
pub use payments::{PayeeTotals, PaymentItem, Payments, Total};
pub use policy::{ApnsCredential, FcmCredential, KeyAlgorithm, Provider};
pub use profile::{Assurance, Factors, Lack, Payee, Payment, Profile};
pub use push::{Candidate, Content, Context, Field, Kind, Outcome, Target};
pub use state::{
    AddressState, CodeState, DeliveryState, DeviceState, InstanceState, NoticeWord, PushState,
    UserStatus,
};
