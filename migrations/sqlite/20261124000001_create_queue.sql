CREATE TABLE queue_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, message TEXT NOT NULL, visible_at BIGINT NOT NULL,
    deliveries BIGINT NOT NULL);
CREATE INDEX queue_messages_visible ON queue_messages (queue, visible_at, id);
