CREATE TABLE proofs (push_id TEXT PRIMARY KEY, device_id TEXT NOT NULL, device_key TEXT NOT NULL, proof TEXT NOT NULL);
ALTER TABLE deliveries ADD COLUMN fetched_at BIGINT;
