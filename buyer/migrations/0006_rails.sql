-- By which rail an authorization moves money, and the contract that burns its nonce: the token, or Permit2.
ALTER TABLE authorizations ADD COLUMN rail TEXT NOT NULL DEFAULT 'eip3009';
ALTER TABLE authorizations ADD COLUMN registry BLOB;
-- The only account that may settle it (`upto`).
ALTER TABLE authorizations ADD COLUMN facilitator BLOB;
-- What was charged of an `upto` ceiling: the seller's word, until the chain has proven it.
ALTER TABLE authorizations ADD COLUMN charged_atomic TEXT;
ALTER TABLE authorizations ADD COLUMN charge_proven INTEGER NOT NULL DEFAULT 0;
UPDATE authorizations SET registry = token;
CREATE UNIQUE INDEX authorizations_by_registry ON authorizations (chain_id, registry, payer, nonce);
-- Ceilings whose charge is open.
CREATE INDEX authorizations_unproven ON authorizations (purchase_id)
    WHERE rail = 'upto' AND state = 'spent' AND charge_proven = 0;

ALTER TABLE intents ADD COLUMN rail TEXT NOT NULL DEFAULT 'eip3009';
ALTER TABLE intents ADD COLUMN registry BLOB;
ALTER TABLE intents ADD COLUMN facilitator BLOB;
UPDATE intents SET registry = token;

-- Words of 256 Permit2 nonces that belong to one purchase: 31 random bytes, and the first bit that was never drawn.
CREATE TABLE permit2_words (
    word BLOB PRIMARY KEY,
    purchase_id INTEGER NOT NULL REFERENCES purchases (id),
    next_bit INTEGER NOT NULL
);
