CREATE TABLE device_requests (
    device_id TEXT COLLATE "C" NOT NULL,
    jti TEXT COLLATE "C" NOT NULL,
    forget_at BIGINT NOT NULL,
    PRIMARY KEY (device_id, jti)
);
CREATE INDEX device_requests_old ON device_requests (forget_at);
