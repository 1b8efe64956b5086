-- What was presented, as a digest: an authorization never leaves with two different requests.
ALTER TABLE authorizations ADD COLUMN request_digest BLOB;
-- When the whole answer had reached whoever asked. A spent one without it is asked for again, not bought again.
ALTER TABLE authorizations ADD COLUMN delivered_s INTEGER;
-- On whose behalf: the name of a client key, where the caller had one.
ALTER TABLE authorizations ADD COLUMN client_key TEXT;
UPDATE authorizations SET delivered_s = claimed_s WHERE state = 'spent';
DROP INDEX authorizations_by_fingerprint;
CREATE INDEX authorizations_unanswered ON authorizations (fingerprint)
    WHERE fingerprint IS NOT NULL AND delivered_s IS NULL;

-- Limits on spending, and what is taken of them: everything claimed and not given back, so reserved and spent alike.
-- Amounts are whole tokens times 10^36, whatever the token; `day` counts days since 1970, UTC.
CREATE TABLE budgets (
    scope TEXT PRIMARY KEY,
    max_per_day TEXT,
    max_total TEXT,
    taken_total TEXT NOT NULL,
    day INTEGER NOT NULL,
    taken_day TEXT NOT NULL
);

-- Who may call the gateway. Only a hash of each key is kept; a revoked name is never used again.
CREATE TABLE client_keys (
    name TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    models TEXT,
    created_s INTEGER NOT NULL,
    revoked_s INTEGER
);
