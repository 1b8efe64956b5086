-- What was answered to a payment, for a client that lost the answer on its way.
CREATE TABLE answers (
    payment_id INTEGER NOT NULL REFERENCES payments (id),
    -- 'open': still being produced. 'whole': complete. 'broken': the application died on the way. 'dropped': not kept.
    state TEXT NOT NULL CHECK (state IN ('open', 'whole', 'broken', 'dropped')),
    status INTEGER NOT NULL,
    -- Name and value pairs in MessagePack.
    headers BLOB NOT NULL,
    -- The first bytes, which are all of most answers; what followed is in answer_chunks.
    body BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    replays INTEGER NOT NULL DEFAULT 0,
    -- The process that produces it; NULL when it is at its end.
    owner TEXT,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (payment_id)
) STRICT;
CREATE INDEX answers_expiring ON answers (expires_ms);
CREATE INDEX answers_owned ON answers (owner) WHERE owner IS NOT NULL;

CREATE TABLE answer_chunks (
    payment_id INTEGER NOT NULL REFERENCES answers (payment_id),
    position INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (payment_id, position)
) STRICT;

-- The bytes of all answers together, kept in the transaction that changes them.
CREATE TABLE answers_held (
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO answers_held (bytes) VALUES (0);
