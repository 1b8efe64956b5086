-- Amounts and times of payments are TEXT: they are uint256 and SQLite's integers are not.

-- A process that works on payments. It is seen on the store for as long as it lives.
CREATE TABLE owners (
    id TEXT PRIMARY KEY
) STRICT;

-- One signed batch or transfer of a settling account. 'sent': stored, and perhaps on its way. 'final': judged.
CREATE TABLE transactions (
    id INTEGER PRIMARY KEY,
    chain_id INTEGER NOT NULL,
    account BLOB NOT NULL CHECK (length(account) = 20),
    account_nonce INTEGER NOT NULL,
    call_to BLOB NOT NULL,
    call_data BLOB NOT NULL,
    gas INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('sent', 'final')),
    created_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX transactions_sent ON transactions (chain_id, account, account_nonce) WHERE state = 'sent';

-- The signed forms of a transaction: the first, then one more for each raise of its fee. Any of them may be mined.
CREATE TABLE signed_forms (
    hash TEXT PRIMARY KEY,
    transaction_id INTEGER NOT NULL REFERENCES transactions (id),
    raw BLOB NOT NULL,
    max_fee_wei TEXT NOT NULL,
    priority_fee_wei TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX signed_forms_of ON signed_forms (transaction_id);

CREATE TABLE payments (
    -- Never used again, also not after a payment that left no trace.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL CHECK (length(token) = 20),
    payer BLOB NOT NULL CHECK (length(payer) = 20),
    nonce BLOB NOT NULL CHECK (length(nonce) = 32),
    payee BLOB NOT NULL CHECK (length(payee) = 20),
    value_atomic TEXT NOT NULL,
    valid_after_s TEXT NOT NULL,
    valid_before_s TEXT NOT NULL,
    signature BLOB NOT NULL,
    route TEXT NOT NULL,
    request_digest BLOB NOT NULL CHECK (length(request_digest) = 32),
    mode TEXT NOT NULL CHECK (mode IN ('before', 'first_byte', 'after', 'async')),
    work TEXT NOT NULL CHECK (work IN ('waiting', 'running', 'delivered', 'failed')),
    money TEXT NOT NULL CHECK (money IN ('reserved', 'queued', 'submitted', 'settled', 'void', 'lost')),
    -- The process that works on it now; NULL when none does.
    owner TEXT,
    runs INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- The chain's height when it was presented: an earlier transfer is not a payment for this request.
    since_block INTEGER NOT NULL,
    -- Not to be settled before this time.
    due_ms INTEGER NOT NULL DEFAULT 0,
    transaction_id INTEGER REFERENCES transactions (id),
    transaction_hash TEXT,
    reason TEXT,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    UNIQUE (chain_id, token, payer, nonce)
) STRICT;
CREATE INDEX payments_to_settle ON payments (chain_id, token, money, due_ms) WHERE money IN ('queued', 'submitted');
CREATE INDEX payments_carried ON payments (transaction_id) WHERE money = 'submitted';
CREATE INDEX payments_owned ON payments (owner) WHERE owner IS NOT NULL;

-- Sums over payments, kept in the transaction that changes a payment.
CREATE TABLE payers (
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    payer BLOB NOT NULL,
    settled_count INTEGER NOT NULL DEFAULT 0,
    settled_atomic TEXT NOT NULL DEFAULT '0',
    outstanding_atomic TEXT NOT NULL DEFAULT '0',
    exposure_atomic TEXT NOT NULL DEFAULT '0',
    PRIMARY KEY (chain_id, token, payer)
) STRICT, WITHOUT ROWID;
CREATE TABLE books (
    chain_id INTEGER NOT NULL,
    token BLOB NOT NULL,
    name TEXT NOT NULL CHECK (name IN ('earned', 'outstanding', 'exposure', 'lost')),
    amount_atomic TEXT NOT NULL DEFAULT '0',
    PRIMARY KEY (chain_id, token, name)
) STRICT, WITHOUT ROWID;

-- Who may settle with an account. Two writers would take the same account nonce.
CREATE TABLE leases (
    account TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;
