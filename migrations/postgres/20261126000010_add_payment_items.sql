CREATE TABLE payment_items (
    push_id TEXT COLLATE "C" NOT NULL, item_index BIGINT NOT NULL, item TEXT COLLATE "C" NOT NULL, consumed_at BIGINT,
    PRIMARY KEY (push_id, item_index));
