CREATE TABLE stores (id TEXT COLLATE "C" PRIMARY KEY, name TEXT COLLATE "C" NOT NULL, created_at BIGINT NOT NULL);
CREATE TABLE api_keys (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" REFERENCES stores (id), hash TEXT COLLATE "C" NOT NULL UNIQUE, scopes TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL, revoked_at BIGINT);
CREATE TABLE users (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), external_id TEXT COLLATE "C" NOT NULL, status TEXT COLLATE "C" NOT NULL,
    preferred_device TEXT COLLATE "C", created_at BIGINT NOT NULL, UNIQUE (store_id, external_id));
CREATE TABLE devices (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), user_id TEXT COLLATE "C" NOT NULL REFERENCES users (id),
    rp TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, platform TEXT COLLATE "C" NOT NULL, public_key TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL,
    address_state TEXT COLLATE "C" NOT NULL, address TEXT COLLATE "C", address_registered_at BIGINT, created_at BIGINT NOT NULL);
CREATE INDEX devices_of_user ON devices (user_id, rp);
CREATE TABLE push_policies (
    store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), rp TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL, apns TEXT COLLATE "C", fcm TEXT COLLATE "C",
    created_at BIGINT NOT NULL, PRIMARY KEY (store_id, rp));
CREATE TABLE process_definitions (
    store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), name TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL, tag TEXT COLLATE "C",
    start_url TEXT COLLATE "C" NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (store_id, name, version));
CREATE TABLE pushes (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL, user_id TEXT COLLATE "C" NOT NULL, rp TEXT COLLATE "C" NOT NULL, kind TEXT COLLATE "C" NOT NULL,
    lane TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL, reason TEXT COLLATE "C" NOT NULL, target TEXT COLLATE "C" NOT NULL, nonce TEXT COLLATE "C" NOT NULL,
    content TEXT COLLATE "C" NOT NULL, content_hash TEXT COLLATE "C" NOT NULL, match_required BIGINT NOT NULL, wrong_codes BIGINT NOT NULL,
    idem_key TEXT COLLATE "C", idem_hash TEXT COLLATE "C", reply_to TEXT COLLATE "C", correlation_id TEXT COLLATE "C", traceparent TEXT COLLATE "C", token_hash TEXT COLLATE "C",
    instance_id TEXT COLLATE "C", answered_by TEXT COLLATE "C", proof_hash TEXT COLLATE "C", escalate_at BIGINT,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, ended_at BIGINT);
CREATE UNIQUE INDEX pushes_idempotency ON pushes (store_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE UNIQUE INDEX pushes_token ON pushes (token_hash) WHERE token_hash IS NOT NULL;
CREATE UNIQUE INDEX pushes_instance ON pushes (instance_id) WHERE instance_id IS NOT NULL;
CREATE INDEX pushes_of_user ON pushes (user_id, id);
CREATE INDEX pushes_of_store ON pushes (store_id, id);
CREATE INDEX pushes_open ON pushes (expires_at) WHERE ended_at IS NULL;
CREATE INDEX pushes_escalating ON pushes (escalate_at) WHERE escalate_at IS NOT NULL;
CREATE TABLE deliveries (
    id TEXT COLLATE "C" PRIMARY KEY, push_id TEXT COLLATE "C" NOT NULL REFERENCES pushes (id), device_id TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL,
    reason TEXT COLLATE "C" NOT NULL, attempt BIGINT NOT NULL, due_at BIGINT NOT NULL, provider_id TEXT COLLATE "C",
    created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL);
CREATE INDEX deliveries_of_push ON deliveries (push_id);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE state IN ('queued', 'sending', 'retry_wait');
CREATE TABLE outbox (id TEXT COLLATE "C" PRIMARY KEY, message TEXT COLLATE "C" NOT NULL, lease_until BIGINT NOT NULL);
CREATE INDEX outbox_due ON outbox (lease_until);
CREATE TABLE inbox (event_id TEXT COLLATE "C" PRIMARY KEY, seen_at BIGINT NOT NULL);
