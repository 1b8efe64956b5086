-- Payments whose verdict a re-organised chain could still change. Each is looked at again until it lies deep enough.
CREATE TABLE unproven (
    payment_id INTEGER NOT NULL REFERENCES payments (id),
    -- The block in which it was seen last; NULL before the first look.
    block INTEGER,
    -- How often in a row the chain did not show it.
    misses INTEGER NOT NULL DEFAULT 0,
    checked_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (payment_id)
) STRICT;
CREATE INDEX unproven_oldest ON unproven (checked_ms);
