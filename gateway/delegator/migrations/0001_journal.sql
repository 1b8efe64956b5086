-- Amounts are decimal text in units of whole tokens times 10^36; times are unix milliseconds.

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    -- Whose run it is: results are never shared between tenants.
    tenant TEXT NOT NULL,
    plan TEXT NOT NULL,
    schedule TEXT NOT NULL,
    budget_units TEXT NOT NULL,
    deadline_ms INTEGER,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'partial', 'failed')),
    -- The process that carries it out; NULL when none does.
    owner TEXT,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER
);

-- One try at a node, under a key that the pool knows the payment by. It is written, and synced, before anything is
-- paid: whoever finds one without an end asks for the same payment's answer again, and never makes another.
CREATE TABLE attempts (
    key TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    node_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    offer TEXT NOT NULL,
    -- What was asked, byte for byte: under the same key nothing else may ever be asked.
    prompt BLOB NOT NULL,
    -- What it may cost at most; reserved until its end.
    price_units TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('intended', 'answered', 'failed')),
    paid_units TEXT,
    reason TEXT,
    result BLOB,
    ended_ms INTEGER,
    UNIQUE (run_id, node_id, number)
);
