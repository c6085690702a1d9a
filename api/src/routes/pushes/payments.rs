//! A batch of payments: how it is sent, read with its proofs, and used one by one.

use super::consume::told;
use super::find;
use super::payment::PayeeView;
use crate::app::App;
use crate::auth::Caller;
use crate::body::Valid;
use crate::problem::{Code, Problem};
use crate::routes::{Query, bad_parameter, id, page};
use crate::view::Listed;
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::clock::rfc3339;
use shared::domain::payments::{MAX_CURRENCIES, MAX_PAYEES, MAX_PAYMENTS};
use shared::domain::{PaymentItem, Payments};
use shared::payments::{ItemProof, prove, shown};
use std::collections::{HashMap, HashSet};
use utoipa::ToSchema;

/// One payment of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PaymentItemView {
    /// A decimal text: up to 15 digits, and up to 4 behind the point.
    #[schema(pattern = "^(0|[1-9][0-9]{0,14})(\\.[0-9]{1,4})?$", example = "12.50")]
    amount: String,
    /// ISO 4217.
    #[schema(pattern = "^[A-Z]{3}$", example = "EUR")]
    currency: String,
    /// Whom it goes to.
    payee: PayeeView,
    /// Your own name of it, which no other payment of the batch has. It is covered by the proof and not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64, example = "invoice-4711")]
    reference: Option<String>,
}

impl From<PaymentItemView> for PaymentItem {
    fn from(view: PaymentItemView) -> Self {
        Self {
            amount: view.amount,
            currency: view.currency,
            payee: view.payee.into(),
            reference: view.reference,
        }
    }
}

impl From<PaymentItem> for PaymentItemView {
    fn from(item: PaymentItem) -> Self {
        Self {
            amount: item.amount,
            currency: item.currency,
            payee: item.payee.into(),
            reference: item.reference,
        }
    }
}

/// One payment, and whether its approval was used.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PaymentRowView {
    /// Its place: 0 is the first.
    index: u64,
    /// As it was sent.
    item: PaymentItemView,
    /// RFC 3339, UTC; once its approval was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    consumed_at: Option<String>,
}

/// That a payment belongs to the batch that was shown and signed: `countersign receipt verify --item` takes it as it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ItemProofView {
    push: String,
    /// Its place: 0 is the first.
    index: u64,
    /// How many payments the batch has.
    tree_size: u64,
    item: PaymentItemView,
    /// base64url of the SHA-256 over a zero byte and the RFC 8785 form of `item`.
    leaf_hash: String,
    /// From the leaf to the root, from below (RFC 6962, 2.1.1).
    path: Vec<String>,
    /// The root that was shown and signed.
    root: String,
}

impl From<ItemProof> for ItemProofView {
    fn from(proof: ItemProof) -> Self {
        Self {
            push: proof.push.to_string(),
            index: proof.index,
            tree_size: proof.tree_size,
            item: proof.item.into(),
            leaf_hash: proof.leaf_hash,
            path: proof.path,
            root: proof.root,
        }
    }
}

/// Go ahead with this payment.
#[derive(Serialize, ToSchema)]
pub(crate) struct PaymentConsumedView {
    push: String,
    index: u64,
    consumed_at: String,
}

/// What the schema cannot say of a batch.
pub(super) fn faults(sent: &Value, fault: &mut impl FnMut(&str, &str, &str)) {
    let Some(items) = sent["payments"].as_array() else {
        return;
    };
    if sent["kind"] != "confirm" {
        fault("/payments", "not_allowed", "only with the kind confirm");
    }
    if !sent["payment"].is_null() {
        fault("/payments", "not_allowed", "not together with payment");
    }
    let (mut references, mut payees, mut currencies) =
        (HashMap::new(), HashSet::new(), HashSet::new());
    for (n, item) in items.iter().enumerate() {
        let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
        payees.insert((text("/payee/name"), text("/payee/account")));
        currencies.insert(text("/currency"));
        let Some(reference) = text("/reference") else {
            continue;
        };
        if let Some(first) = references.insert(reference, n) {
            let pointer = format!("/payments/{n}/reference");
            fault(&pointer, "duplicate", &format!("/payments/{first} has it"));
        }
    }
    if payees.len() > MAX_PAYEES {
        let detail =
            format!("at most {MAX_PAYEES} different payees: the person is shown all of them");
        fault("/payments", "too_many", &detail);
    }
    if currencies.len() > MAX_CURRENCIES {
        let detail = format!("at most {MAX_CURRENCIES} currencies");
        fault("/payments", "too_many", &detail);
    }
}

/// The payments of a valid request, and what is shown of them.
pub(super) fn batch(
    sent: Option<Vec<PaymentItemView>>,
) -> Result<(Vec<PaymentItem>, Option<Payments>), Problem> {
    let Some(sent) = sent else {
        return Ok((Vec::new(), None));
    };
    let items: Vec<PaymentItem> = sent.into_iter().map(Into::into).collect();
    // The schema lets no other amount through: nothing is ever asked without what it is to pay.
    let shown = shown(&items)
        .ok_or_else(|| Problem::fault("/payments", "wrong_form", "an amount is none"))?;
    Ok((items, Some(shown)))
}

/// The payments of a push, in their order, each with whether its approval was used.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes/{push}/payments", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path), ("cursor" = Option<String>, Query), ("limit" = Option<i64>, Query)),
    responses((status = 200, body = Listed<PaymentRowView>), (status = 404, body = Problem)))]
pub(crate) async fn list_payments(
    State(app): State<App>,
    caller: Caller,
    Path((store, push)): Path<(String, String)>,
    query: Query,
) -> Result<Json<Listed<PaymentRowView>>, Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:read").await?;
    let (cursor, limit) = page(&query, &[])?;
    let after = match cursor.as_str() {
        "" => -1,
        text => text
            .parse()
            .ok()
            .filter(|at| (0..MAX_PAYMENTS as i64).contains(at))
            .ok_or_else(|| bad_parameter("cursor is what next_cursor said"))?,
    };
    if found.content.payments.is_none() {
        return Err(Code::NotFound.into());
    }
    let rows = app.store.payments(&found.id, after, limit).await?;
    let full = rows.len() as i64 == limit;
    let next_cursor = rows
        .last()
        .filter(|_| full)
        .map(|row| row.index.to_string());
    let data = rows.into_iter().map(|row| PaymentRowView {
        index: row.index,
        item: row.item.into(),
        consumed_at: row.consumed_at.map(rfc3339),
    });
    Ok(Json(Listed {
        data: data.collect(),
        next_cursor,
    }))
}

/// One payment, with the proof that it belongs to what was shown and signed.
#[utoipa::path(get, path = "/v1/stores/{store}/pushes/{push}/payments/{index}", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path), ("index" = u64, Path)),
    responses((status = 200, body = ItemProofView), (status = 404, body = Problem)))]
pub(crate) async fn show_payment(
    State(app): State<App>,
    caller: Caller,
    Path((store, push, index)): Path<(String, String, String)>,
) -> Result<Json<ItemProofView>, Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:read").await?;
    let index: usize = id(&index)?;
    let rows = app
        .store
        .payments(&found.id, -1, MAX_PAYMENTS as i64)
        .await?;
    let items: Vec<_> = rows.into_iter().map(|row| row.item).collect();
    let proof = prove(&found.id, &items, index).ok_or(Code::NotFound)?;
    Ok(Json(proof.into()))
}

/// Use the approval of one payment of a batch: once, within 300 s of the approval, and for the very payment that the person approved. Call it right before the act, with
/// what you are about to execute. A second call gets 409, also when the answer to the first was lost: whether it was you must be in your own books.
#[utoipa::path(post, path = "/v1/stores/{store}/pushes/{push}/payments/{index}/consume", tag = "pushes",
    params(("store" = String, Path), ("push" = String, Path), ("index" = u64, Path)), request_body = PaymentItemView,
    responses((status = 200, body = PaymentConsumedView), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn consume_payment(
    State(app): State<App>,
    caller: Caller,
    Path((store, push, index)): Path<(String, String, String)>,
    body: Valid<PaymentItemView>,
) -> Result<Json<PaymentConsumedView>, Problem> {
    let found = find(&app, &caller, &store, &push, "pushes:write").await?;
    let (index, now) = (id(&index)?, app.clock.now());
    let consumed = caller
        .store(&app)
        .consume_payment(&found, index, &body.value.into(), now)
        .await?;
    let consumed = consumed.ok_or(Code::NotFound)?;
    Ok(Json(PaymentConsumedView {
        consumed_at: told(consumed, found.state.as_str(), &found.reason)?,
        push: found.id.to_string(),
        index,
    }))
}
