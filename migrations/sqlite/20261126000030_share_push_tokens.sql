CREATE TABLE push_tokens (
    id TEXT PRIMARY KEY, sealed TEXT, issued_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, not_before BIGINT NOT NULL,
    holder TEXT, lease_until BIGINT NOT NULL, forget_at BIGINT NOT NULL);
