-- How often work for a payer was lost, because its money was withdrawn after the work had begun: it settles first since.
ALTER TABLE payers ADD COLUMN withdrawn_count INTEGER NOT NULL DEFAULT 0;

-- How many payments have come to an end, and which, so that nobody need count the rows.
CREATE TABLE payment_counts (
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    money TEXT NOT NULL CHECK (money IN ('settled', 'void', 'lost')),
    payments INTEGER NOT NULL,
    PRIMARY KEY (chain_id, token, money)
) STRICT, WITHOUT ROWID;
INSERT INTO payment_counts (chain_id, token, money, payments)
    SELECT chain_id, token, money, count(*) FROM payments WHERE money IN ('settled', 'void', 'lost')
    GROUP BY chain_id, token, money;
