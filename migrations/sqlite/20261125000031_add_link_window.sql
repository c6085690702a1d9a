ALTER TABLE pushes ADD COLUMN not_before BIGINT;
ALTER TABLE pushes ADD COLUMN not_after BIGINT;
ALTER TABLE pushes ADD COLUMN instance_state TEXT;
