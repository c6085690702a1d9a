CREATE TABLE prompt_slots (
    user_id TEXT COLLATE "C" NOT NULL, rp TEXT COLLATE "C" NOT NULL, push_id TEXT COLLATE "C", previous TEXT COLLATE "C", PRIMARY KEY (user_id, rp));
ALTER TABLE prompt_slots SET (fillfactor = 50);
CREATE TABLE denials (user_id TEXT COLLATE "C" NOT NULL, rp TEXT COLLATE "C" NOT NULL, denied_at BIGINT NOT NULL, PRIMARY KEY (user_id, rp));
ALTER TABLE push_policies ADD COLUMN open_prompts TEXT COLLATE "C";
ALTER TABLE push_policies ADD COLUMN cooldown BIGINT;
