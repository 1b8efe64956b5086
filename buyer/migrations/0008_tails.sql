-- The file in which a worker writes down its steps before they are entered here, and how many of its bytes are.
ALTER TABLE workers ADD COLUMN tail TEXT;
ALTER TABLE workers ADD COLUMN entered INTEGER NOT NULL DEFAULT 0;
