-- Which key the signatures are encrypted with: a name derived from it. NULL: they are not.
ALTER TABLE pool_state ADD COLUMN seal_id TEXT;
