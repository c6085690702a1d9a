CREATE TABLE approvals (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL REFERENCES stores (id), rp TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    required BIGINT NOT NULL, member_count BIGINT NOT NULL, on_denial TEXT NOT NULL, requested_by TEXT, idem_key TEXT, idem_hash TEXT,
    reply_to TEXT, correlation_id TEXT, traceparent TEXT, created_by TEXT,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, ended_at BIGINT, consumed_at BIGINT);
CREATE UNIQUE INDEX approvals_idempotency ON approvals (store_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX approvals_open ON approvals (expires_at) WHERE ended_at IS NULL;
CREATE INDEX approvals_of_store ON approvals (store_id, id);
CREATE TABLE settlements (push_id TEXT PRIMARY KEY, approval_id TEXT NOT NULL, due_at BIGINT NOT NULL);
CREATE INDEX settlements_due ON settlements (due_at);
CREATE INDEX settlements_of_approval ON settlements (approval_id);
ALTER TABLE pushes ADD COLUMN approval_id TEXT;
CREATE INDEX pushes_of_approval ON pushes (approval_id) WHERE approval_id IS NOT NULL;
