-- The local index of ERC-8004 registrations. SQLite only, for FTS5.
--
-- Three kinds of table. What a chain says: chains, ranges, checkpoints, endpoints, identity_events, feedback_events, and
-- agents and metadata, which follow from the events alone and are made again after a re-org. What strangers say, each
-- fact as untrusted as its source: documents, services, bazaar_items. What we saw or decided: probes, verifications, pins.
-- Addresses are 20 bytes, hashes 32; times are Unix seconds; amounts are atomic units as decimal text.

-- One registry a chain. `head_*` is the block up to which the last finished sync saw everything; NULL before the first.
CREATE TABLE chains (
    chain_id INTEGER PRIMARY KEY,
    identity BLOB NOT NULL CHECK (length(identity) = 20),
    reputation BLOB NOT NULL CHECK (length(reputation) = 20),
    first_block INTEGER NOT NULL,
    head_block INTEGER,
    head_hash BLOB,
    head_time_s INTEGER,
    agent_count INTEGER,     -- read from the registry's own counter at head_block
    implementation BLOB,     -- what the registry's proxy pointed to at head_block
    synced_at_s INTEGER
) STRICT;

-- Blocks whose logs are in the index, and which endpoint told them: what a liar told is forgotten as a whole.
CREATE TABLE ranges (
    chain_id INTEGER NOT NULL REFERENCES chains,
    first_block INTEGER NOT NULL,
    last_block INTEGER NOT NULL CHECK (last_block >= first_block),
    endpoint TEXT NOT NULL,
    PRIMARY KEY (chain_id, first_block)
) STRICT, WITHOUT ROWID;

-- Hashes of blocks near former heads, by which a re-org is noticed.
CREATE TABLE checkpoints (
    chain_id INTEGER NOT NULL REFERENCES chains,
    block INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (chain_id, block)
) STRICT, WITHOUT ROWID;

-- What was learned about an RPC endpoint. `endpoint` is its host and a hash of the rest, which may be a secret.
CREATE TABLE endpoints (
    chain_id INTEGER NOT NULL REFERENCES chains,
    endpoint TEXT NOT NULL,
    window_blocks INTEGER NOT NULL,   -- blocks one request may span
    window_max INTEGER,               -- the most it ever allowed, once it said no
    lies INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (chain_id, endpoint)
) STRICT, WITHOUT ROWID;

-- registered: account = owner, value = URI. uri: account = who changed it, value = URI.
-- metadata: name = key, value = bytes. transfer: former = from, account = to.
-- upgraded (no agent): account = implementation. owned (no agent): former, account = owners of the registry.
CREATE TABLE identity_events (
    chain_id INTEGER NOT NULL REFERENCES chains,
    block INTEGER NOT NULL,
    log_index INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL,
    block_hash BLOB NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('registered', 'uri', 'metadata', 'transfer', 'upgraded', 'owned')),
    agent_id INTEGER,
    account BLOB,
    former BLOB,
    name TEXT,
    value BLOB,
    value_bytes INTEGER,     -- the length on chain; more than length(value) where the value was cut
    PRIMARY KEY (chain_id, block, log_index)
) STRICT;
CREATE INDEX identity_events_of_agent ON identity_events (chain_id, agent_id, block, log_index);
CREATE INDEX identity_events_by_account ON identity_events (chain_id, account) WHERE kind IN ('registered', 'transfer');

-- given: value is a signed integer of `decimals` decimals. revoked; answered: `responder`, `uri`, `file_hash` are its own.
CREATE TABLE feedback_events (
    chain_id INTEGER NOT NULL REFERENCES chains,
    block INTEGER NOT NULL,
    log_index INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL,
    block_hash BLOB NOT NULL,
    time_s INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('given', 'revoked', 'answered')),
    agent_id INTEGER NOT NULL,
    client BLOB NOT NULL,
    feedback_index INTEGER NOT NULL,
    value TEXT,
    decimals INTEGER,
    tag1 TEXT,
    tag2 TEXT,
    endpoint TEXT,
    uri TEXT,
    file_hash BLOB,
    responder BLOB,
    PRIMARY KEY (chain_id, block, log_index)
) STRICT;
CREATE INDEX feedback_events_of_agent ON feedback_events (chain_id, agent_id, client, feedback_index);

-- Current state. `number` joins the full-text table and differs between copies of an index; it is never exported.
-- While history is still being fetched, registered_* may be NULL and everything else is already the newest.
CREATE TABLE agents (
    number INTEGER PRIMARY KEY,
    chain_id INTEGER NOT NULL REFERENCES chains,
    agent_id INTEGER NOT NULL,
    registered_block INTEGER,
    registered_transaction BLOB,
    registrant BLOB,
    owner BLOB,
    wallet BLOB,             -- the on-chain agentWallet; NULL when unset (after every transfer)
    uri TEXT NOT NULL DEFAULT '',
    uri_bytes INTEGER NOT NULL DEFAULT 0,   -- more than the bytes of `uri` where it was cut
    uri_key BLOB,            -- sha256 of `uri`: the document it leads to; NULL for an empty one
    transfers INTEGER NOT NULL DEFAULT 0,   -- since the registration
    updated_block INTEGER NOT NULL,
    UNIQUE (chain_id, agent_id)
) STRICT;
CREATE INDEX agents_by_owner ON agents (owner);
CREATE INDEX agents_by_wallet ON agents (wallet);
CREATE INDEX agents_by_uri ON agents (uri_key);

CREATE TABLE metadata (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (chain_id, agent_id, key)
) STRICT, WITHOUT ROWID;

-- What a URI led to, once for all agents that name it. `card` is the parsed file as JSON, `warnings` a JSON list of codes.
-- state: ok (a file, however odd), failed (no file; `error` says why, and it is not asked again before expires_at_s).
CREATE TABLE documents (
    uri_key BLOB PRIMARY KEY,
    uri TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('ok', 'failed')),
    content_hash BLOB,       -- sha256 of the bytes
    content_bytes INTEGER,
    card TEXT,
    warnings TEXT NOT NULL DEFAULT '[]',
    error TEXT,
    failures INTEGER NOT NULL DEFAULT 0,
    etag TEXT,
    last_modified TEXT,
    fetched_at_s INTEGER NOT NULL,
    expires_at_s INTEGER NOT NULL
) STRICT;

CREATE TABLE services (
    uri_key BLOB NOT NULL REFERENCES documents ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    version TEXT,
    host TEXT,
    PRIMARY KEY (uri_key, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX services_by_host ON services (host);

-- History: one row an unpaid request. `offers` is the JSON list of what the 402 asked; the columns are of its best offer.
CREATE TABLE probes (
    number INTEGER PRIMARY KEY,
    endpoint TEXT NOT NULL,
    probed_at_s INTEGER NOT NULL,
    state TEXT NOT NULL,     -- payable, or why not
    http_status INTEGER,
    latency_ms INTEGER,
    scheme TEXT,
    network TEXT,
    asset BLOB,
    pay_to BLOB,
    price_atomic TEXT,
    offers TEXT,
    error TEXT
) STRICT;
CREATE INDEX probes_of_endpoint ON probes (endpoint, probed_at_s);

-- The last result of each step of the ladder; `subject` is a domain or an endpoint where the step has one, else ''.
CREATE TABLE verifications (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    step TEXT NOT NULL,
    subject TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL CHECK (result IN ('ok', 'absent', 'mismatch', 'unreachable', 'not_applicable')),
    detail TEXT NOT NULL DEFAULT '',
    checked_at_s INTEGER NOT NULL,
    PRIMARY KEY (chain_id, agent_id, step, subject)
) STRICT, WITHOUT ROWID;

-- A payee that the user chose to trust for an agent, although the chain names another.
CREATE TABLE pins (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    network TEXT NOT NULL,
    pay_to BLOB NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    pinned_at_s INTEGER NOT NULL,
    PRIMARY KEY (chain_id, agent_id, network, pay_to)
) STRICT, WITHOUT ROWID;

-- Listings by source: the same resource from two sources is two rows, so that every fact keeps its provenance.
CREATE TABLE bazaar_items (
    source TEXT NOT NULL,
    resource TEXT NOT NULL,
    tool TEXT NOT NULL DEFAULT '',
    kind TEXT NOT NULL,
    host TEXT,
    name TEXT NOT NULL DEFAULT '',
    description TEXT NOT NULL DEFAULT '',
    tags TEXT NOT NULL DEFAULT '[]',
    scheme TEXT,
    network TEXT,
    asset BLOB,
    pay_to BLOB,
    price_atomic TEXT,
    offers TEXT NOT NULL DEFAULT '[]',
    calls_30_days INTEGER,
    payers_30_days INTEGER,
    updated_at_s INTEGER,
    fetched_at_s INTEGER NOT NULL,
    PRIMARY KEY (source, resource, tool)
) STRICT;
CREATE INDEX bazaar_items_by_payee ON bazaar_items (pay_to);
CREATE INDEX bazaar_items_by_host ON bazaar_items (host);

-- rowid = agents.number
CREATE VIRTUAL TABLE agent_text USING fts5 (
    name, description, skills, tags, endpoints, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
);
