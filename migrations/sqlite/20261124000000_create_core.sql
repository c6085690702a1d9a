CREATE TABLE stores (id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at BIGINT NOT NULL);
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, store_id TEXT REFERENCES stores (id), hash TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL,
    created_at BIGINT NOT NULL, revoked_at BIGINT);
CREATE TABLE users (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL REFERENCES stores (id), external_id TEXT NOT NULL, status TEXT NOT NULL,
    preferred_device TEXT, created_at BIGINT NOT NULL, UNIQUE (store_id, external_id));
CREATE TABLE devices (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL REFERENCES stores (id), user_id TEXT NOT NULL REFERENCES users (id),
    rp TEXT NOT NULL, name TEXT NOT NULL, platform TEXT NOT NULL, public_key TEXT NOT NULL, state TEXT NOT NULL,
    address_state TEXT NOT NULL, address TEXT, address_registered_at BIGINT, created_at BIGINT NOT NULL);
CREATE INDEX devices_of_user ON devices (user_id, rp);
CREATE TABLE push_policies (
    store_id TEXT NOT NULL REFERENCES stores (id), rp TEXT NOT NULL, name TEXT NOT NULL, apns TEXT, fcm TEXT,
    created_at BIGINT NOT NULL, PRIMARY KEY (store_id, rp));
CREATE TABLE process_definitions (
    store_id TEXT NOT NULL REFERENCES stores (id), name TEXT NOT NULL, version BIGINT NOT NULL, tag TEXT,
    start_url TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (store_id, name, version));
CREATE TABLE pushes (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL, user_id TEXT NOT NULL, rp TEXT NOT NULL, kind TEXT NOT NULL,
    lane TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, target TEXT NOT NULL, nonce TEXT NOT NULL,
    content TEXT NOT NULL, content_hash TEXT NOT NULL, match_required BIGINT NOT NULL, wrong_codes BIGINT NOT NULL,
    idem_key TEXT, idem_hash TEXT, reply_to TEXT, correlation_id TEXT, traceparent TEXT, token_hash TEXT,
    instance_id TEXT, answered_by TEXT, proof_hash TEXT, escalate_at BIGINT,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, ended_at BIGINT);
CREATE UNIQUE INDEX pushes_idempotency ON pushes (store_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE UNIQUE INDEX pushes_token ON pushes (token_hash) WHERE token_hash IS NOT NULL;
CREATE UNIQUE INDEX pushes_instance ON pushes (instance_id) WHERE instance_id IS NOT NULL;
CREATE INDEX pushes_of_user ON pushes (user_id, id);
CREATE INDEX pushes_of_store ON pushes (store_id, id);
CREATE INDEX pushes_open ON pushes (expires_at) WHERE ended_at IS NULL;
CREATE INDEX pushes_escalating ON pushes (escalate_at) WHERE escalate_at IS NOT NULL;
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY, push_id TEXT NOT NULL REFERENCES pushes (id), device_id TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT NOT NULL, attempt BIGINT NOT NULL, due_at BIGINT NOT NULL, provider_id TEXT,
    created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL);
CREATE INDEX deliveries_of_push ON deliveries (push_id);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state IN ('queued', 'sending', 'retry_wait');
CREATE TABLE outbox (id TEXT PRIMARY KEY, message TEXT NOT NULL, lease_until BIGINT NOT NULL);
CREATE INDEX outbox_due ON outbox (lease_until);
CREATE TABLE inbox (event_id TEXT PRIMARY KEY, seen_at BIGINT NOT NULL);
