CREATE TABLE audit_waiting (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL, act TEXT NOT NULL, push_id TEXT, entry TEXT NOT NULL);
CREATE TABLE audit_log (
    store_id TEXT NOT NULL, seq BIGINT NOT NULL, id TEXT NOT NULL, act TEXT NOT NULL, push_id TEXT,
    entry TEXT NOT NULL, PRIMARY KEY (store_id, seq));
CREATE INDEX audit_log_of_push ON audit_log (push_id) WHERE push_id IS NOT NULL;
CREATE TABLE audit_heads (store_id TEXT PRIMARY KEY, seq BIGINT NOT NULL, hash TEXT NOT NULL);
ALTER TABLE pushes ADD COLUMN refused_proofs BIGINT NOT NULL DEFAULT 0;
