-- Amounts are decimal text in units of whole tokens times 10^36; times are unix milliseconds.

CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    -- The request as JSON, without the model: who answers is known when it is bought.
    request BLOB NOT NULL,
    max_price_units TEXT NOT NULL,
    made_ms INTEGER NOT NULL,
    -- What is not bought by then is dropped.
    expires_ms INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'buying', 'done', 'failed', 'expired', 'cancelled')),
    -- The process that has it in hand; NULL when none does.
    owner TEXT,
    -- The pool knows a payment by task and attempt. While a task is bought, both stay, and so does the purchase:
    -- whoever asks again asks for the same payment's answer.
    attempt INTEGER NOT NULL DEFAULT 0,
    purchase TEXT,
    -- Not before then is it looked at again, and how often it was put off in a row.
    ask_at_ms INTEGER NOT NULL,
    put_off INTEGER NOT NULL DEFAULT 0,
    paid_units TEXT,
    result BLOB,
    reason TEXT,
    ended_ms INTEGER
);
CREATE INDEX tasks_due ON tasks (state, ask_at_ms);
CREATE INDEX tasks_by_time ON tasks (made_ms);
