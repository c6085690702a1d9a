CREATE TABLE approvals (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), rp TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL, reason TEXT COLLATE "C" NOT NULL,
    required BIGINT NOT NULL, member_count BIGINT NOT NULL, on_denial TEXT COLLATE "C" NOT NULL, requested_by TEXT COLLATE "C", idem_key TEXT COLLATE "C", idem_hash TEXT COLLATE "C",
    reply_to TEXT COLLATE "C", correlation_id TEXT COLLATE "C", traceparent TEXT COLLATE "C", created_by TEXT COLLATE "C",
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, ended_at BIGINT, consumed_at BIGINT);
CREATE UNIQUE INDEX approvals_idempotency ON approvals (store_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX approvals_open ON approvals (expires_at) WHERE ended_at IS NULL;
CREATE INDEX approvals_of_store ON approvals (store_id, id);
CREATE TABLE settlements (push_id TEXT COLLATE "C" PRIMARY KEY, approval_id TEXT COLLATE "C" NOT NULL, due_at BIGINT NOT NULL);
CREATE INDEX settlements_due ON settlements (due_at);
CREATE INDEX settlements_of_approval ON settlements (approval_id);
ALTER TABLE pushes ADD COLUMN approval_id TEXT COLLATE "C";
CREATE INDEX pushes_of_approval ON pushes (approval_id) WHERE approval_id IS NOT NULL;
