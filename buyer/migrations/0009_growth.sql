-- The id goes along where authorizations are handed out in order: SQLite has it in every index, PostgreSQL in none, and
-- would sort all that is ready for each lease.
DROP INDEX authorizations_free;
CREATE INDEX authorizations_free ON authorizations (purchase_id, terms_id, valid_before_s, id)
    WHERE state = 'ready';
-- With the state, so that SQLite takes it where it might take the index of everything in one state.
DROP INDEX authorizations_unproven;
CREATE INDEX authorizations_unproven ON authorizations (purchase_id, state)
    WHERE rail = 'upto' AND state = 'spent' AND charge_proven = 0;
