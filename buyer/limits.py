"""Every limit of the buyer, in one place: name, unit, reason."""

from __future__ import annotations

# Authorizations one worker takes out of the pool per synced write: amortises the sync to a few microseconds a claim.
LEASE_SIZE = 64
# Where a lease lasts no longer than this, the next one is twice as large, up to so many times the first: a claim then
# writes fewer pages of the store. After a power loss all of an open lease is UNKNOWN until the chain has spoken.
LEASE_BRIEF_S = 1
LEASE_GROWTH_MAX = 4
# A worker takes at most this share of what is free, so that a small pool is not starved by the first worker.
LEASE_SHARE = 4
# What a worker writes down beside the books before it begins anew, in a new file: some thousand paid calls.
TAIL_BYTES_MAX = 1024 * 1024

# An authorization must outlive the seller's own time-out by this much, or it is not handed out: clocks differ, and a
# seller that settles after it served needs time to do so.
CLAIM_MARGIN_S = 120

# How long after a call its seller may still have the answer that reached nobody (Farebox's own keeps them an hour);
# until then a repetition asks for it, and later it is a new purchase.
ANSWER_LIFE_S = 3600

# Authorizations one `buy` or refill signs at most; 10,000 take a few seconds and 10 MB.
SIGN_COUNT_MAX = 10_000
# Signed and stored together: bounds what is repeated after a crash, and paces the progress bar.
SIGN_CHUNK = 50
# The same for a key in this very process, which makes as many again in some milliseconds.
SIGN_CHUNK_OWN_KEY = 250
# Shorter pools die before they are used; longer ones than `contracts.limits.VALIDITY_S_MAX` outlive every budget.
TTL_S_MIN = 600
TTL_S_DEFAULT = 7 * 86_400

# Days after today for which the payments of an AgentWallet are signed ahead: a day without `process` costs none.
WALLET_DAYS_AHEAD = 2
# A day's payment is not handed out before the day is this old: the chain's clock may be behind ours.
WALLET_DAY_BEGINS_S = 30

# Longest a seller may claim to need for one answer before a buyer calls it a trick to stretch validity.
SELLER_TIMEOUT_S_MAX = 3600
# The payment window a client signs for when its policy names none; sellers that charge a stream by usage ask for this.
VALIDITY_S_DEFAULT = 900

# How long a probe waits for a connection, and for the whole answer.
PROBE_CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 20.0
# An SDK client drops an idle connection before its seller does (uvicorn: 5 s): a payment that goes into a closing
# connection is one whose fate is unknown.
KEEPALIVE_S = 3.0
# A paid answer may take as long as a long generation.
PAID_TIMEOUT_S = 600.0
# What an SDK client takes of one answer unless its user says otherwise: its body after decoding, and the time from the
# request to the last byte. Ends endless and dripping answers.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
ANSWER_TIMEOUT_S = 900.0
# A compressed body is decoded in pieces of at most this, whatever it unfolds to.
ANSWER_PIECE_BYTES_MAX = 256 * 1024
# The answer body `farebox pay` prints; more is refused rather than held in memory.
PAY_BODY_BYTES_MAX = 64 * 1024 * 1024

# One signature from a remote signer, and how many are asked for at once.
SIGNER_TIMEOUT_S = 30.0
SIGNER_PARALLEL = 8
SIGNER_ANSWER_BYTES_MAX = 64 * 1024

# The chain's clock must be this far past validBefore before an unused authorization counts as expired: a block that is
# re-organised away may have been earlier.
EXPIRY_CHAIN_MARGIN_S = 60
# Authorizations asked about in one round trip; one call of the batch reads the head.
RECONCILE_BATCH = 90
# How long `remove --cancel-onchain` waits for its transactions.
CANCEL_RECEIPT_TIMEOUT_S = 120.0

# Lost payments an SDK client remembers in memory, so that a repeated request presents the same one again.
OPEN_PAYMENTS_MAX = 1024

NAME_LENGTH_MAX = 64
MODEL_LENGTH_MAX = 256
URL_LENGTH_MAX = 2048
RECEIPTS_MAX = 10_000
REASON_LENGTH_MAX = 300
# Agents that `buy --from` verifies before it gives up on a query.
SELLERS_TRIED_MAX = 5

# Slots that one transaction of `farebox wallet revoke` burns: about 40,000 gas each in a token, 25,000 for a word of
# 256 in Permit2, well below every block's limit.
REVOKED_NONCES_PER_TRANSACTION = 100
REVOKED_WORDS_PER_TRANSACTION = 64
# How long a relay may take to send what an owner signed.
FORWARD_LIFE_S = 600
