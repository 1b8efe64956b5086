"""Every limit of the seller room, in one place: name, unit, reason."""

from __future__ import annotations

# What an offer states as maxTimeoutSeconds: other clients sign validBefore = now + this (the SDKs' own default).
OFFER_TIMEOUT_S = 300
# ... and for what is sold by usage, which is settled after the last token: a long answer takes minutes.
METERED_OFFER_TIMEOUT_S = 900

# A paid request's body is held in memory for its digest and its model; long contexts and audio files fit.
REQUEST_BODY_BYTES_MAX = 32 * 1024 * 1024
# All request bodies held at once; beyond it a request is asked to come again.
REQUEST_BODIES_BYTES_MAX = 512 * 1024 * 1024
# Parts of a multipart form that are looked at for `model`.
FORM_PARTS_MAX = 64
# An answer held back until it is settled (`after`) may not be larger.
HELD_BODY_BYTES_MAX = 32 * 1024 * 1024
# A model name in a request; longer ones are no names.
MODEL_NAME_CHARS_MAX = 256

# Answers to one request (`n`) that is sold by usage; OpenAI's own limit.
CHOICES_MAX = 128
# Tokenizers make a token of some 4 bytes of English, and of fewer of other languages and of code.
TEXT_BYTES_PER_TOKEN = 8
# Tokens a model may be priced for in one call; contexts of ten million are the longest there are.
PRICED_TOKENS_MAX = 100_000_000

# How long a request waits for its own settlement before it answers 503.
SETTLE_WAIT_S = 30.0
# An authorization must outlive a request that is settled while the client waits: settling, plus the wire margin.
URGENT_LIFE_S = int(SETTLE_WAIT_S) + 6
# ... and one that is settled from the queue must outlive a restart of the worker and several attempts.
QUEUED_LIFE_S = 120
# First and longest pause between two looks at the store while a request waits for its settlement.
SETTLE_POLL_S = 0.02
SETTLE_POLL_MAX_S = 0.5

# How old a payer's balance and code may be when they are relied on.
PAYER_FACTS_TTL_S = 10.0
# Payers remembered; an entry is some hundred bytes.
PAYER_FACTS_MAX = 10_000
# Our clock and the latest block's time may be so far apart before one of them is doubted: a clock that NTP keeps is
# closer, and most chains make a block in less.
CLOCK_TOLERANCE_S = 5
# How old the latest block's time may be when a payment looks expired by our clock.
HEAD_TIME_TTL_S = 5.0
# Questions that payments cost which no key of their payer has signed (contract wallets, or garbage): at once, and the
# rate at which they may be asked again.
WALLET_QUESTIONS_MAX = 50
WALLET_QUESTIONS_PER_S = 20
# Questions about payers who have paid nothing here yet: anybody can make keys and sign with them. At once, and the rate
# at which they may be asked again; known payers are not counted.
STRANGER_QUESTIONS_MAX = 500
STRANGER_QUESTIONS_PER_S = 100
STRANGER_RETRY_AFTER_S = 2
# Chain reads of one request, all together.
FACTS_TIMEOUT_S = 5.0

# A paid answer is kept for a client that lost it: for this long after its end. A hung-up client comes back within
# minutes; one that waits for its own restart, within the hour.
ANSWER_TTL_S = 3600
# One kept answer: some 40,000 streamed tokens, or a few images. A larger one passes and is not kept.
ANSWER_BYTES_MAX = 8 * 1024 * 1024
# All kept answers of a store together; beyond it the oldest go first.
ANSWERS_BYTES_MAX = 512 * 1024 * 1024
# What an answer takes besides its own bytes; bounds the number of small ones.
ANSWER_OVERHEAD_BYTES = 512
# Headers of a kept answer; of more only those about the content are kept.
ANSWER_HEADER_BYTES_MAX = 16 * 1024
# Answers deleted in one transaction.
ANSWERS_SWEPT_MAX = 64
# How often one answer is given again: a client tries a few times. What settles on chain is public there, so whoever
# can guess a whole request could ask, too.
ANSWER_REPLAYS_MAX = 16
# A stream is written down in pieces: of this size, or of what came in this time.
ANSWER_PIECE_BYTES = 64 * 1024
ANSWER_PIECE_S = 0.25
# How long the work goes on for a client that has left, so that its answer is there when it comes back.
LINGER_S = 600.0

# How often the work of one payment may be started: an honest client repeats a failed call a few times.
RUNS_MAX = 16
# Transfers in one transaction: 98 % of the gas saving is there at 50, and a failure costs little.
BATCH_MAX = 50
# How long the first payment of a batch waits for company when nobody waits for it.
FLUSH_WINDOW_S = 1.0
# Transactions of one account on their way at once; a stuck one delays no more than these.
IN_FLIGHT_MAX = 4
# Gas of one transfer inside a batch. USDC behind its proxy stays below; an estimate would be wrong, because a batch
# that tolerates failures "succeeds" with too little gas.
GAS_PER_TRANSFER = 120_000
GAS_PER_BATCH = 60_000
# ... of one over Permit2, whose nonce may open a new word of storage; a token permit on the way comes on top.
GAS_PER_PERMIT2_TRANSFER = 160_000
GAS_PER_TOKEN_PERMIT = 80_000
# A contract's opinion of a signature runs its own code, which may burn what it is given: asked, and settled, with this.
GAS_PER_SIGNATURE_CHECK = 200_000
GAS_PER_CONTRACT_PAYER = 400_000
# ... and with the deployment of the wallet before it.
GAS_PER_DEPLOYMENT = 3_000_000
# What a transfer of nothing to oneself takes: the price of a transaction (Ethereum yellow paper, G_transaction).
GAS_PER_SELF_TRANSFER = 21_000
# Unused account nonces below our own transactions that are filled in one round.
GAP_FILL_MAX = 16
# How long a nonce we have used is remembered against a node that says it is free. After that the node is believed: its
# chain may have been put back on purpose.
NONCE_MEMORY_S = 3600.0
# Room above the estimate for a single transfer, as a ratio.
GAS_MARGIN_NUMERATOR, GAS_MARGIN_DENOMINATOR = 5, 4
# First and longest pause between two looks for a receipt.
RECEIPT_POLL_S = 0.02
RECEIPT_POLL_MAX_S = 1.0
# A transaction without receipt for this long is sent again; after the second figure also with a higher fee.
RESEND_AFTER_S = 5.0
FEE_BUMP_AFTER_S = 30.0
# Nodes replace a transaction for at least 10 % more; the ceiling is this many raises.
FEE_BUMP_NUMERATOR, FEE_BUMP_DENOMINATOR = 5, 4
FEE_BUMPS_MAX = 8
# Blocks a transfer must lie deep before its goods leave or its credit counts: 1 is the block it is in. Where a chain's
# last block is replaced now and then, a payment of some cents is worth the wait of a block; rollups and chains with
# instant finality have one producer or none to disagree.
CONFIRMATIONS_DEFAULT = 1
CONFIRMATIONS = {
    1: 2,  # Ethereum: the head is replaced some times a day
    50: 3,  # XDC and its test network
    51: 3,
    137: 4,  # Polygon and its test network have seen deep re-organisations
    80002: 4,
}
# Verdicts are looked at again until they lie this deep: Ethereum finalises after 64 to 95 blocks, others sooner.
FINAL_BLOCKS = 96
# How often, how many at a time, and how many looks in a row must miss a transfer before it is due again: one node
# among several may be behind.
REORG_CHECK_S = 5.0
UNPROVEN_MAX = 2000
REORG_LOOKS = 2

# On-chain failures of one payment before it is given up.
ATTEMPTS_MAX = 5
# First and longest pause before a refused payment is tried again.
RETRY_S = 2.0
RETRY_MAX_S = 300.0

# How long a settlement worker holds its account without renewing; another one may then take over.
LEASE_S = 15.0
LEASE_RENEW_S = 5.0
# Pause of a worker with nothing to do; another process's work is seen after at most this long.
IDLE_POLL_S = 0.2
# How long a request waits for its settlement while the worker stands still, or none is running.
TROUBLE_GRACE_S = 3.0
# Pause of a worker whose account another one holds.
STANDBY_POLL_S = 1.0
# Pause after a failure of chain, facilitator or store.
FAILURE_PAUSE_S = 1.0

# One facilitator request; a settlement takes a block or more.
FACILITATOR_TIMEOUT_S = 25.0
FACILITATOR_ANSWER_BYTES_MAX = 64 * 1024
FACILITATOR_AT_ONCE_MAX = 16
# Facilitators one after the other, each for its share of the time, but at least this long.
FACILITATORS_MAX = 4
FACILITATOR_SHARE_MIN_S = 5.0

# Our own facilitator: a request of others waits this long for its receipt, then it is told to ask again. The official
# client gives up after 30 s.
FACILITATE_WAIT_S = 20.0
FACILITATE_BODY_BYTES_MAX = 64 * 1024
FACILITATE_AT_ONCE_MAX = 256
# Settlements of one payer that fail after a good simulation, each of which may have cost gas, within this time.
FACILITATE_FAILURES_MAX = 5
FACILITATE_FAILURES_WINDOW_S = 600.0

# The upstream of the reverse proxy: connecting, and silence between two chunks (a long prompt is thought about).
UPSTREAM_CONNECT_TIMEOUT_S = 5.0
UPSTREAM_IDLE_TIMEOUT_S = 300.0
UPSTREAM_CONNECTIONS_MAX = 512
UPSTREAM_CHUNK_BYTES = 64 * 1024

# Calls worked on at once, and calls of one tier that wait: settings may not ask for more.
SLOTS_MAX = 10_000
QUEUE_MAX = 10_000
# How long a call waits for a slot before it is told to come again. Its payment must live so much longer.
QUEUE_WAIT_S = 30.0
# What a call that found the queue full is told to wait.
QUEUE_RETRY_AFTER_S = 2
# Factors of prices, in basis points: of a tier, and of load.
TIER_BP_MAX = 1_000_000
LOAD_BP_MAX = 100_000
# Steps of a price that moves with load; every price is quoted once for each of them.
LOAD_STEPS_MAX = 8
# How long a quote may be honoured after the price has risen: as long as an offer says it takes.
QUOTE_VALID_S_MAX = 300
# How long a price stays at least before it moves by one more step; a queue's length jumps with every call.
LOAD_STEP_S = 5.0

# How long requests in flight may finish after SIGTERM.
SHUTDOWN_GRACE_S = 30
# Rows `/status` shows per list.
STATUS_ROWS_MAX = 100

# Marked payers that `farebox payers` shows; those that cost most come first.
PAYERS_SHOWN_MAX = 1000
