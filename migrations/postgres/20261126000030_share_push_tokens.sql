CREATE TABLE push_tokens (
    id TEXT COLLATE "C" PRIMARY KEY, sealed TEXT COLLATE "C", issued_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, not_before BIGINT NOT NULL,
    holder TEXT COLLATE "C", lease_until BIGINT NOT NULL, forget_at BIGINT NOT NULL);
