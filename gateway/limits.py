"""Every limit of the gateway, in one place: name, unit, reason."""

from __future__ import annotations

# The largest prompt forwarded; images in base64 fit, a film does not.
BODY_BYTES_MAX = 10 * 1024 * 1024
# All header names and values of one request. Servers in front of us usually stop at a quarter of this.
HEADERS_BYTES_MAX = 64 * 1024
# Spellings of our own Host header that are remembered; the port makes the difference.
GOOD_HOSTS_MAX = 64
# An id a client chooses for one logical request.
REQUEST_ID_CHARS_MAX = 256
# A model name; the longest public ones have about 100 characters.
MODEL_CHARS_MAX = 512

# From a request's head to the end of its body.
BODY_TIMEOUT_S = 60.0
# Calls in flight at once; past it a client is told to come back, with nothing claimed.
CONCURRENT_MAX = 512
# Of these, what the calls of one client key may take, unless the settings say otherwise: others find a place.
CONCURRENT_PER_KEY = CONCURRENT_MAX // 2
# Label sets of metrics that are kept at hand; purchases times outcomes, and the rest is looked up.
METRICS_KEPT_MAX = 1_000
# What those clients are told to wait.
BUSY_RETRY_AFTER_S = 1

# To make a connection to a seller, name resolution and TLS included.
CONNECT_TIMEOUT_S = 10.0
# Silence of a seller after which its answer counts as lost; a large model may think this long before its first byte.
SILENCE_TIMEOUT_S = 300.0
# One whole call. Ends endless and dripping streams.
CALL_TIMEOUT_S = 900.0
# Idle connections are dropped before the seller drops them (uvicorn: 5 s): a POST into a closing connection is a
# payment whose fate is unknown.
KEEPALIVE_S = 3.0
# Connections kept for the next call, to all sellers together; as many as there are calls at once.
IDLE_CONNECTIONS_MAX = CONCURRENT_MAX
# Status line and headers of an answer. A settlement receipt is about 1 kB; this leaves room for extensions.
HEAD_BYTES_MAX = 64 * 1024
# What of an answer waits here for a slow client; past it, the seller waits.
UNREAD_BYTES_MAX = 256 * 1024
# One answer, streamed or not.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
# An error's body is shown to the client; past this it is replaced by ours.
ERROR_BODY_BYTES_MAX = 256 * 1024

# Answers kept for a client that repeats its request: each, all together, and for how long.
KEPT_ANSWER_BYTES_MAX = 8 * 1024 * 1024
KEPT_BYTES_MAX = 64 * 1024 * 1024
KEPT_S = 600.0
# How long after a change of the pool (another process bought, refilled, removed) it is noticed at the latest.
POOL_POLL_S = 1.0
# The log tells of a dry pool, or a seller that is away, no more often: every call meets it.
TROUBLE_TOLD_EVERY_S = 60.0
# A seller that refused its own pinned terms is not asked again before this: each asking locks up one authorization.
TERMS_CHANGED_PAUSE_S = 30.0
# Between two questions to the chain about payments of unknown fate; doubled while the answer stays the same.
RECONCILE_EVERY_S = 15.0
RECONCILE_EVERY_S_MAX = 600.0
# Calls in flight get this long to end after SIGTERM; then they are recorded as unknown.
STOP_TIMEOUT_S = 30.0
# The furthest deadline that a client may state.
DEADLINE_MS_MAX = 3_600_000
# A seller that fails this often in a row is left alone this long, before one call tries it again.
BREAKER_FAILURES = 3
BREAKER_PAUSE_S = 30.0
BREAKERS_MAX = 1_000
# A seller that says when to come again is left alone for so long, within this bound.
RETRY_AFTER_S_MAX = 30
# A seller's queue as it was told is believed for this long.
QUEUE_FACTS_S = 15.0
# Sellers that calls could choose among of late are asked for their queue: so often, so many, and each for this long.
QUEUE_POLL_EVERY_S = 3.0
QUEUE_POLLED_MAX = 32
QUEUE_POLL_TIMEOUT_S = 2.0
QUEUE_BODY_BYTES_MAX = 16 * 1024
# Without calls to choose for, they are left in peace after this; and one that tells of no queue is, for this long.
QUEUE_POLL_IDLE_S = 60.0
QUEUE_SILENT_S = 600.0
# What the event log keeps of one seller's queue: once in this time, however many answers tell of it.
QUEUE_OBSERVED_EVERY_S = 1.0
# How long a seller by usage that found a request too large is asked before it is paid, which takes a round trip more.
ASK_FIRST_S = 600.0
# How often `farebox devnet` looks whether its chain still runs.
DEVNET_LOOK_EVERY_S = 0.5
