-- The account nonces used of late: the next one is asked for with every transaction, of which there will be many.
CREATE INDEX transactions_recent ON transactions (chain_id, account, created_ms);
