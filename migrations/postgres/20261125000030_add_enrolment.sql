CREATE TABLE enrolment_codes (
    id TEXT COLLATE "C" PRIMARY KEY, store_id TEXT COLLATE "C" NOT NULL REFERENCES stores (id), user_id TEXT COLLATE "C" NOT NULL REFERENCES users (id),
    rp TEXT COLLATE "C" NOT NULL, hash TEXT COLLATE "C" NOT NULL UNIQUE, made_by TEXT COLLATE "C", created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    used_at BIGINT, device_id TEXT COLLATE "C", revoked_at BIGINT);
CREATE INDEX enrolment_codes_of_user ON enrolment_codes (user_id, expires_at);
CREATE INDEX enrolment_codes_old ON enrolment_codes (expires_at);
CREATE TABLE notices (
    id TEXT COLLATE "C" PRIMARY KEY, device_id TEXT COLLATE "C" NOT NULL, about TEXT COLLATE "C" NOT NULL,
    what TEXT COLLATE "C" NOT NULL, created_at BIGINT NOT NULL, UNIQUE (device_id, about, what));
CREATE INDEX notices_old ON notices (created_at);
