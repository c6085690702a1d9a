//! Payments as senders write them.

use serde::{Deserialize, Serialize};
use shared::domain::{Payee, Payment, Profile};
use utoipa::ToSchema;

/// A payment: shown, and covered by the proof.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentView {
    /// A decimal text: up to 15 digits, and up to 4 behind the point.
    #[schema(pattern = "^(0|[1-9][0-9]{0,14})(\\.[0-9]{1,4})?$", example = "12.50")]
    amount: String,
    /// ISO 4217.
    #[schema(pattern = "^[A-Z]{3}$", example = "EUR")]
    currency: String,
    /// Whom it goes to.
    payee: PayeeView,
}

/// Whom a payment goes to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PayeeView {
    /// As the payer knows them.
    #[schema(min_length = 1, max_length = 140)]
    name: String,
    /// An IBAN or another account number.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9 ./:-]+$")]
    account: String,
}

impl From<PaymentView> for Payment {
    fn from(view: PaymentView) -> Self {
        Self {
            amount: view.amount,
            currency: view.currency,
            payee: view.payee.into(),
        }
    }
}

impl From<PayeeView> for Payee {
    fn from(view: PayeeView) -> Self {
        Self {
            name: view.name,
            account: view.account,
        }
    }
}

impl From<Payee> for PayeeView {
    fn from(payee: Payee) -> Self {
        Self {
            name: payee.name,
            account: payee.account,
        }
    }
}

/// Whose rules. See `docs/policies.md`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProfileWord {
    Default,
    Nist,
    Psd2,
}

impl From<ProfileWord> for Profile {
    fn from(word: ProfileWord) -> Self {
        match word {
            ProfileWord::Default => Self::Default,
            ProfileWord::Nist => Self::Nist,
            ProfileWord::Psd2 => Self::Psd2,
        }
    }
}
