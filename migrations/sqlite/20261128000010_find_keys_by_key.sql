DROP INDEX pushes_idempotency;
CREATE UNIQUE INDEX pushes_idempotency ON pushes (idem_key, (store_id || '')) WHERE idem_key IS NOT NULL;
