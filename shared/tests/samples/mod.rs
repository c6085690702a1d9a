//! What tests of the store send, to Ada of the relying party `payroll`. A test says only what is particular about its own.

#![allow(dead_code, reason = "each test program uses its part")]

use shared::clock::Millis;
use shared::crypto::content_hash;
use shared::domain::{Content, Kind, Target};
use shared::id::{PushId, StoreId};
use shared::message::Lane;
use shared::store::{NewPush, NewRow, Terms, UserRef};

/// A title and nothing else.
pub(crate) fn content(kind: Kind, title: &str) -> Content {
    Content {
        kind,
        relying_party: "payroll".to_owned(),
        title: title.to_owned(),
        message: None,
        details: vec![],
        context: None,
        payment: None,
        approval: None,
        payments: None,
        redirect_url: None,
    }
}

/// An interactive push that is open for a minute.
pub(crate) fn push(store: &StoreId, content: Content, now: Millis) -> NewPush {
    NewPush {
        payments: vec![],
        id: PushId::fresh(now),
        store: store.clone(),
        user: UserRef::External("ada".to_owned()),
        content_hash: content_hash(&content),
        content,
        target: Target::All,
        nonce: "nonce".to_owned(),
        lane: Lane::Interactive,
        match_required: false,
        idempotency: None,
        reply_to: None,
        correlation_id: None,
        traceparent: None,
        process: None,
        terms: Terms::default(),
        created_at: now,
        expires_at: now + 60_000,
    }
}

/// A line of a batch whose push lives for ten minutes.
pub(crate) fn row(line: i64, content: Content, now: Millis) -> NewRow {
    NewRow {
        line,
        key: None,
        hash: "h".to_owned(),
        id: PushId::fresh(now),
        user: UserRef::External("ada".to_owned()),
        content_hash: content_hash(&content),
        content,
        target: Target::All,
        nonce: "nonce".to_owned(),
        lifetime: 600_000,
        correlation_id: None,
        bytes: 10,
    }
}
