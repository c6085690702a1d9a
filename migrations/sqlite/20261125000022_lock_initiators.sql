ALTER TABLE push_policies ADD COLUMN fraud_lock BIGINT;
ALTER TABLE pushes ADD COLUMN created_by TEXT;
ALTER TABLE pushes ADD COLUMN initiator TEXT;
CREATE TABLE fraud_locks (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL, created_by TEXT NOT NULL, subject TEXT NOT NULL,
    user_id TEXT NOT NULL, rp TEXT NOT NULL, push_id TEXT NOT NULL, locked_at BIGINT NOT NULL,
    locked_until BIGINT NOT NULL, UNIQUE (store_id, created_by, subject));
