CREATE TABLE device_requests (
    device_id TEXT NOT NULL,
    jti TEXT NOT NULL,
    forget_at BIGINT NOT NULL,
    PRIMARY KEY (device_id, jti)
);
CREATE INDEX device_requests_old ON device_requests (forget_at);
