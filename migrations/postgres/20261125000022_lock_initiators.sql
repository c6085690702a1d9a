ALTER TABLE push_policies ADD COLUMN fraud_lock BIGINT;
ALTER TABLE pushes ADD COLUMN created_by TEXT COLLATE "C";
ALTER TABLE pushes ADD COLUMN initiator TEXT COLLATE "C";
CREATE TABLE fraud_locks (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL, created_by TEXT COLLATE "C" NOT NULL, subject TEXT COLLATE "C" NOT NULL,
    user_id TEXT COLLATE "C" NOT NULL, rp TEXT COLLATE "C" NOT NULL, push_id TEXT COLLATE "C" NOT NULL, locked_at BIGINT NOT NULL,
    locked_until BIGINT NOT NULL, UNIQUE (store_id, created_by, subject));
