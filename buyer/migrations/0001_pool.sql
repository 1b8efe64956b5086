-- Amounts are decimal text: a uint256 does not fit SQLite's integers.

CREATE TABLE purchases (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    -- 'pool': many calls through the gateway; 'once': one `farebox pay`.
    kind TEXT NOT NULL CHECK (kind IN ('pool', 'once')),
    state TEXT NOT NULL CHECK (state IN ('active', 'draining', 'removed')),
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    payer BLOB NOT NULL,
    price_cap_atomic TEXT NOT NULL,
    ttl_s INTEGER NOT NULL,
    refill TEXT,
    rpc_urls TEXT NOT NULL,
    terms_id INTEGER NOT NULL,
    created_s INTEGER NOT NULL
);
-- A removed purchase gives its name free.
CREATE UNIQUE INDEX purchases_by_name ON purchases (name) WHERE state != 'removed';

-- What a seller offered when it was pinned. A refill at a new price pins new terms; old authorizations keep theirs.
CREATE TABLE terms (
    id INTEGER PRIMARY KEY,
    x402_version INTEGER NOT NULL,
    accepted TEXT NOT NULL,
    decimals INTEGER NOT NULL,
    resource TEXT,
    extensions TEXT,
    pinned_s INTEGER NOT NULL
);

-- Written before a signer is asked: whoever dies in between still counts it as exposure, and signs the same again.
CREATE TABLE intents (
    nonce BLOB NOT NULL,
    purchase_id INTEGER NOT NULL REFERENCES purchases (id),
    terms_id INTEGER NOT NULL REFERENCES terms (id),
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    payer BLOB NOT NULL,
    payee BLOB NOT NULL,
    value_atomic TEXT NOT NULL,
    valid_after_s INTEGER NOT NULL,
    valid_before_s INTEGER NOT NULL,
    intended_s INTEGER NOT NULL,
    from_block INTEGER NOT NULL,
    PRIMARY KEY (chain_id, token, payer, nonce)
) WITHOUT ROWID;

-- One row a signed authorization, for ever. `lease` names the worker that may claim it; the request columns say which
-- one logical request it was presented for.
CREATE TABLE authorizations (
    id INTEGER PRIMARY KEY,
    purchase_id INTEGER NOT NULL REFERENCES purchases (id),
    terms_id INTEGER NOT NULL REFERENCES terms (id),
    state TEXT NOT NULL
        CHECK (state IN ('ready', 'claimed', 'sent', 'unknown', 'spent', 'expired', 'cancelled')),
    lease TEXT,
    request_key TEXT,
    fingerprint TEXT,
    route TEXT,
    claimed_s INTEGER,
    status INTEGER,
    latency_ms INTEGER,
    transaction_hash TEXT,
    reason TEXT,
    cancel_asked INTEGER NOT NULL DEFAULT 0,
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    payer BLOB NOT NULL,
    payee BLOB NOT NULL,
    value_atomic TEXT NOT NULL,
    valid_after_s INTEGER NOT NULL,
    valid_before_s INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    signature BLOB NOT NULL,
    signed_s INTEGER NOT NULL,
    from_block INTEGER NOT NULL,
    UNIQUE (chain_id, token, payer, nonce)
);
CREATE INDEX authorizations_free ON authorizations (purchase_id, terms_id, valid_before_s)
    WHERE state = 'ready';
CREATE INDEX authorizations_by_state ON authorizations (purchase_id, state);
CREATE INDEX authorizations_by_lease ON authorizations (lease) WHERE lease IS NOT NULL;
CREATE INDEX authorizations_by_request ON authorizations (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX authorizations_by_fingerprint ON authorizations (fingerprint) WHERE state = 'unknown';

-- Processes that hold a lease. Alive means: the kernel still holds their lock file for them.
CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    boot_id TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_s INTEGER NOT NULL
) WITHOUT ROWID;
