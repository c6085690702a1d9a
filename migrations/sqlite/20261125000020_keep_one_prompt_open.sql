CREATE TABLE prompt_slots (
    user_id TEXT NOT NULL, rp TEXT NOT NULL, push_id TEXT, previous TEXT, PRIMARY KEY (user_id, rp));
CREATE TABLE denials (user_id TEXT NOT NULL, rp TEXT NOT NULL, denied_at BIGINT NOT NULL, PRIMARY KEY (user_id, rp));
ALTER TABLE push_policies ADD COLUMN open_prompts TEXT;
ALTER TABLE push_policies ADD COLUMN cooldown BIGINT;
