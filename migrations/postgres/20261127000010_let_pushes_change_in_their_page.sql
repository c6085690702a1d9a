ALTER TABLE pushes SET (fillfactor = 45);
