CREATE TABLE enrolment_codes (
    id TEXT PRIMARY KEY, store_id TEXT NOT NULL REFERENCES stores (id), user_id TEXT NOT NULL REFERENCES users (id),
    rp TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, made_by TEXT, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    used_at BIGINT, device_id TEXT, revoked_at BIGINT);
CREATE INDEX enrolment_codes_of_user ON enrolment_codes (user_id, expires_at);
CREATE INDEX enrolment_codes_old ON enrolment_codes (expires_at);
CREATE TABLE notices (
    id TEXT PRIMARY KEY, device_id TEXT NOT NULL, about TEXT NOT NULL,
    what TEXT NOT NULL, created_at BIGINT NOT NULL, UNIQUE (device_id, about, what));
CREATE INDEX notices_old ON notices (created_at);
