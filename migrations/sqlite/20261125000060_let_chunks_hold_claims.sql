ALTER TABLE backlog ADD COLUMN sent_due BIGINT;
CREATE INDEX backlog_unsent ON backlog (sent_due) WHERE sent_due IS NOT NULL;
