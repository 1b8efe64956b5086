-- Which models an inference endpoint lists, and the route that answered.
ALTER TABLE probes ADD COLUMN url TEXT;
ALTER TABLE probes ADD COLUMN models TEXT;

-- A registration file that the user looked at and accepted; any other content is a change since then.
CREATE TABLE approvals (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    approved_at_s INTEGER NOT NULL,
    PRIMARY KEY (chain_id, agent_id)
) STRICT, WITHOUT ROWID;

-- What the last survey made of an agent, for search. It speaks of one owner, wallet and URI, and holds only for these.
-- state: the best probe's. verdict: verified, unproven or blocked. price_* are of the offer a buyer would take.
CREATE TABLE standings (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    uri_key BLOB,
    owner BLOB,
    wallet BLOB,
    endpoint TEXT,
    state TEXT NOT NULL,
    verdict TEXT NOT NULL CHECK (verdict IN ('verified', 'unproven', 'blocked')),
    reason TEXT NOT NULL DEFAULT '',
    network TEXT,
    asset BLOB,
    pay_to BLOB,
    price_atomic TEXT,
    decimals INTEGER,
    symbol TEXT,
    latency_ms INTEGER,
    models TEXT NOT NULL DEFAULT '[]',
    answered INTEGER NOT NULL,   -- of the last probes of the endpoint, how many it answered with a price
    probed INTEGER NOT NULL,
    surveyed_at_s INTEGER NOT NULL,
    PRIMARY KEY (chain_id, agent_id)
) STRICT, WITHOUT ROWID;

-- rowid = bazaar_items.rowid
CREATE VIRTUAL TABLE bazaar_text USING fts5 (
    name, description, tags, resource, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
