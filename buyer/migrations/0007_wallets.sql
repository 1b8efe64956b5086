-- A purchase that an AgentWallet pays: the key that signs for it, and for how many calls a day it signs ahead.
ALTER TABLE purchases ADD COLUMN agent BLOB;
ALTER TABLE purchases ADD COLUMN calls_per_day INTEGER;

-- A wallet's slots of one token and one day: the first that was never drawn, whatever it was drawn for.
CREATE TABLE wallet_days (
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    wallet BLOB NOT NULL,
    day INTEGER NOT NULL,
    next_slot INTEGER NOT NULL,
    PRIMARY KEY (chain_id, token, wallet, day)
);
