-- What was decided, on what, and what became of it. No word of a prompt or an answer is in any of these tables.
-- Amounts are decimal text in units of whole tokens times 10^36; times are unix milliseconds.

CREATE TABLE decisions (
    id TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    -- The pool's key of the logical request, by which its receipt is found.
    request_key TEXT,
    model TEXT NOT NULL,
    policy TEXT NOT NULL,
    -- Which trained model decided; NULL where it was a rule.
    trained TEXT,
    action TEXT NOT NULL CHECK (action IN ('buy', 'wait', 'skip')),
    -- The place of what was bought among the offers.
    chosen INTEGER,
    is_exploration INTEGER NOT NULL,
    propensity DOUBLE PRECISION NOT NULL,
    p_good DOUBLE PRECISION,
    utility DOUBLE PRECISION,
    reason TEXT NOT NULL,
    work DOUBLE PRECISION NOT NULL,
    slack_s DOUBLE PRECISION NOT NULL,
    value_units TEXT NOT NULL,
    cap_units TEXT NOT NULL,
    difficulty DOUBLE PRECISION NOT NULL,
    priority INTEGER NOT NULL
);
CREATE INDEX decisions_by_time ON decisions (at_ms);

-- Every offer that was looked at: without those that were not taken, no other policy can be judged.
CREATE TABLE decision_offers (
    decision_id TEXT NOT NULL REFERENCES decisions (id),
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    seller TEXT NOT NULL,
    tier INTEGER NOT NULL,
    price_units TEXT NOT NULL,
    -- The row of features as little-endian doubles, in the order that `schema` names.
    features BLOB NOT NULL,
    schema INTEGER NOT NULL,
    PRIMARY KEY (decision_id, place)
);

CREATE TABLE outcomes (
    decision_id TEXT PRIMARY KEY REFERENCES decisions (id),
    at_ms INTEGER NOT NULL,
    latency_s DOUBLE PRECISION NOT NULL,
    is_ok INTEGER NOT NULL,
    is_good INTEGER NOT NULL,
    -- Given up at `latency_s`: it took longer.
    is_censored INTEGER NOT NULL,
    paid_units TEXT NOT NULL,
    -- Whether the seller's charge is proven, claimed, or not known yet.
    settlement TEXT NOT NULL CHECK (settlement IN ('none', 'stated', 'unknown'))
);

-- What sellers showed of themselves besides an offer that was decided on.
CREATE TABLE observations (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    seller TEXT NOT NULL,
    tier INTEGER NOT NULL,
    price_units TEXT,
    queue_per_slot DOUBLE PRECISION,
    busy_share DOUBLE PRECISION
);

CREATE TABLE models (
    name TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    outcomes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('shadow', 'live', 'retired')),
    metrics TEXT NOT NULL
);
