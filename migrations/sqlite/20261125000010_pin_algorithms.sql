ALTER TABLE appkey_policies ADD COLUMN algorithms TEXT;
