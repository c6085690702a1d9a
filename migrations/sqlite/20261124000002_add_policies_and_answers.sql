ALTER TABLE devices ADD COLUMN address_provider TEXT;
ALTER TABLE devices ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE pushes ADD COLUMN fan_out_due BIGINT;
ALTER TABLE pushes ADD COLUMN definition TEXT;
ALTER TABLE pushes ADD COLUMN parameters TEXT;
ALTER TABLE pushes ADD COLUMN opened_at BIGINT;
ALTER TABLE push_policies ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE api_keys ADD COLUMN name TEXT NOT NULL DEFAULT '';
CREATE INDEX pushes_fan_out ON pushes (fan_out_due) WHERE fan_out_due IS NOT NULL;
CREATE UNIQUE INDEX deliveries_once ON deliveries (push_id, device_id);
CREATE TABLE appkey_policies (
    store_id TEXT NOT NULL REFERENCES stores (id), rp TEXT NOT NULL, platforms TEXT NOT NULL, max_devices BIGINT NOT NULL,
    user_verification TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (store_id, rp));
CREATE INDEX devices_by_address ON devices (store_id, address) WHERE address IS NOT NULL;
ALTER TABLE deliveries ADD COLUMN decision TEXT;
ALTER TABLE deliveries ADD COLUMN proof_hash TEXT;
ALTER TABLE pushes ADD COLUMN max_duration BIGINT;
ALTER TABLE deliveries ADD COLUMN calls BIGINT NOT NULL DEFAULT 0;
CREATE INDEX inbox_old ON inbox (seen_at);
