-- Ratings whose payment was found on chain. One transaction proves one rating, of whichever agent, for good.
CREATE TABLE payment_proofs (
    chain_id INTEGER NOT NULL,
    agent_id INTEGER NOT NULL,
    client BLOB NOT NULL,
    feedback_index INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL,
    checked_at_s INTEGER NOT NULL,
    PRIMARY KEY (chain_id, transaction_hash),
    UNIQUE (chain_id, agent_id, client, feedback_index)
) STRICT;

-- Reviewers the user trusts without a payment.
CREATE TABLE trusted_reviewers (
    address BLOB PRIMARY KEY,
    note TEXT NOT NULL DEFAULT '',
    added_at_s INTEGER NOT NULL
) STRICT;
