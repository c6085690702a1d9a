ALTER TABLE stores ADD COLUMN bulk_weight BIGINT NOT NULL DEFAULT 1;
CREATE TABLE batches (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), name TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL,
    reason TEXT COLLATE "C" NOT NULL, idem_key TEXT COLLATE "C", idem_hash TEXT COLLATE "C", upload TEXT COLLATE "C" NOT NULL, atomic BIGINT NOT NULL,
    max_per_second BIGINT, next_release_at BIGINT NOT NULL, chunk_rows BIGINT NOT NULL, lines BIGINT NOT NULL, accepted BIGINT NOT NULL,
    waiting BIGINT NOT NULL, waiting_bytes BIGINT NOT NULL, cancelled_to BIGINT NOT NULL, outcomes TEXT COLLATE "C",
    created_at BIGINT NOT NULL, touched_at BIGINT NOT NULL, received_at BIGINT, first_released_at BIGINT, last_released_at BIGINT, ended_at BIGINT);
CREATE UNIQUE INDEX batches_idempotency ON batches (store_id, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX batches_of_store ON batches (store_id, id);
CREATE INDEX batches_open ON batches (id) WHERE ended_at IS NULL;
CREATE TABLE batch_refusals (
    batch_id TEXT COLLATE "C" NOT NULL, line BIGINT NOT NULL, row_key TEXT COLLATE "C", duplicate_of TEXT COLLATE "C", faults TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (batch_id, line));
CREATE TABLE backlog (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL, batch_id TEXT COLLATE "C" NOT NULL, pushes TEXT COLLATE "C" NOT NULL,
    first_push TEXT COLLATE "C" NOT NULL, first_line BIGINT NOT NULL, row_count BIGINT NOT NULL, bytes BIGINT NOT NULL, created_at BIGINT NOT NULL,
    released_at BIGINT, begun_at BIGINT, due_at BIGINT);
CREATE INDEX backlog_of_batch ON backlog (batch_id);
CREATE INDEX backlog_waiting ON backlog (batch_id, first_line) WHERE released_at IS NULL;
CREATE INDEX backlog_in_flight ON backlog (released_at) WHERE released_at IS NOT NULL AND begun_at IS NULL;
CREATE INDEX backlog_begun ON backlog (due_at) WHERE begun_at IS NOT NULL;
CREATE TABLE leases (name TEXT COLLATE "C" PRIMARY KEY, holder TEXT COLLATE "C" NOT NULL, until_at BIGINT NOT NULL);
ALTER TABLE pushes ADD COLUMN batch_id TEXT COLLATE "C";
ALTER TABLE pushes ADD COLUMN line BIGINT;
ALTER TABLE pushes ADD COLUMN lifetime BIGINT;
CREATE INDEX pushes_of_batch ON pushes (batch_id, line) WHERE batch_id IS NOT NULL;
