"""Every limit the agreements set, in one place: name, unit, reason."""

from __future__ import annotations

# A real payment header is about 1.2 kB; extensions multiply it. Intermediaries drop more than 16 kB anyway.
HEADER_BYTES_MAX = 16 * 1024
# A 402 body holds a handful of offers; anything larger is an attack on the reader's memory.
BODY_402_BYTES_MAX = 64 * 1024
# Offers one 402 may list before a reader stops looking.
OFFERS_MAX = 32
# Levels of arrays and objects in JSON of strangers. Tool schemas of a chat call have some ten.
JSON_DEPTH_MAX = 512
# One server-sent event that is looked into. An image in one is larger, and nobody needs to look into that.
EVENT_BYTES_MAX = 1024 * 1024
# Decimal digits of a uint256.
UINT_DIGITS_MAX = 78
# An ERC-6492 wrapped signature carries a factory call; more than this is not a signature.
SIGNATURE_BYTES_MAX = 4096
# Verifiers want an authorization to outlive the request by this much (official SDK: 6 s).
EXPIRY_MARGIN_S = 6
# A validity window longer than this is refused by buyers: it would outlive every budget.
VALIDITY_S_MAX = 90 * 86_400

# One RPC request, from connect to last byte.
RPC_TIMEOUT_S = 10.0
RPC_CONNECT_TIMEOUT_S = 3.0
# Largest RPC answer that is read; a batch of receipts stays far below.
RPC_ANSWER_BYTES_MAX = 16 * 1024 * 1024
# Transactions looked at for the one that settled a Permit2 payment: its payer's to its payee since it was presented.
ENDINGS_LOOKED_AT_MAX = 200
# Requests put into one JSON-RPC batch; public endpoints refuse more.
RPC_BATCH_MAX = 100

# How long a writer waits for another process's transaction before it gives up.
STORE_BUSY_TIMEOUT_S = 5.0
# The same for a thread that runs an event loop, where everybody else waits with it: for other threads, then for
# other processes.
STORE_LOOP_WAIT_S = 0.25
# Writes waiting for the next group commit.
STORE_QUEUE_MAX = 4096
# Writes joined into one commit; bounds the latency of the first.
STORE_GROUP_MAX = 256
# Turns of an event loop that writes wait for each other at most, as long as every turn brings more of them.
STORE_GATHER_TURNS = 2
# Pages in SQLite's log before they are copied into the file: 16 MB, four times SQLite's own choice, because most of
# them are versions of the same pages, of which only the last is copied.
STORE_LOG_PAGES_MAX = 4000
# A database server: connecting; one statement, by the server's clock; the answer to it, by ours, for a server that
# stands still; a transaction that does nothing, as of a process that was stopped while it had the turn to write.
STORE_CONNECT_TIMEOUT_S = 5
STORE_STATEMENT_TIMEOUT_S = 10.0
STORE_ANSWER_TIMEOUT_S = 12.0
STORE_IDLE_TIMEOUT_S = 10.0
# After a failed connection, how long calls are refused at least without trying again.
STORE_RECONNECT_PAUSE_S = 0.5
# Silence after which each side of a connection asks whether the other is there, and how often before it gives up: a
# machine that is gone is noticed within idle + probes x interval.
STORE_KEEPALIVE_IDLE_S = 15
STORE_KEEPALIVE_INTERVAL_S = 5
STORE_KEEPALIVE_PROBES = 3
# How often a process looks whether it is still seen by the others.
STORE_PRESENCE_S = 1.0
# A server's start ends every connection: nobody is taken for dead until the living had time to come back.
STORE_REJOIN_S = 5.0

# New objects that may live before a serving process looks for cycles among them: a hundred requests under way have some
# thousand.
YOUNG_OBJECTS_MAX = 10_000

# Anvil answers within half a second; a machine that compiles beside it may need far longer.
DEVNET_START_TIMEOUT_S = 60.0
# After a polite request to end, time enough to write a state file.
DEVNET_STOP_TIMEOUT_S = 5.0
DEVNET_RPC_TIMEOUT_S = 30.0
DEVNET_RECEIPT_TIMEOUT_S = 30.0
# How often a starting chain's log, or an open transaction, is looked at.
DEVNET_POLL_S = 0.02
# The end of anvil's log that an error shows.
DEVNET_LOG_TAIL_CHARS = 2000
# The compiler needs some seconds; a loaded machine gets its grace.
COMPILE_TIMEOUT_S = 120.0
# The whole suite of Solidity tests takes about two minutes.
FORGE_TIMEOUT_S = 1800.0

# An admin token that can be guessed guards nothing.
ADMIN_TOKEN_CHARS_MIN = 16
