ALTER TABLE users ADD COLUMN code_failures BIGINT NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN codes_blocked_until BIGINT;
ALTER TABLE users ADD COLUMN last_approved_at BIGINT;
ALTER TABLE push_policies ADD COLUMN max_prompts BIGINT;
DROP INDEX deliveries_of_push;
ALTER TABLE deliveries DROP CONSTRAINT deliveries_push_id_fkey;
ALTER TABLE deliveries SET (fillfactor = 60);
ALTER TABLE pushes SET (fillfactor = 80);
