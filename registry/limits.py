"""Every limit of the registry, in one place: name, unit, reason."""

from __future__ import annotations

# Documents of strangers

# A registration file has a few kB; agent0 caps files inside a URI at the same size.
DOCUMENT_BYTES_MAX = 256 * 1024
# The proof on a domain lists registrations only.
WELL_KNOWN_BYTES_MAX = 64 * 1024
# A URI may be the file itself: base64 makes a third more of it, percent-encoding three times as much.
URI_CHARS_MAX = 3 * DOCUMENT_BYTES_MAX
# An address to fetch; browsers and servers stop near here.
URL_CHARS_MAX = 2048
# Members of a list in a registration file that are read.
SERVICES_MAX = 32
REGISTRATIONS_MAX = 64
SKILLS_MAX = 32
# Characters of a text that are kept: what a person reads in a table, and in a paragraph.
NAME_CHARS_MAX = 80
DESCRIPTION_CHARS_MAX = 1000
WORD_CHARS_MAX = 120
# Different warnings about one document; each code is named once.
WARNINGS_MAX = 32

# Fetching from strangers

# One document, from resolving the name to the last byte, redirects included.
FETCH_TIMEOUT_S = 10.0
REDIRECTS_MAX = 3
# Open connections, in all and to one host, which may carry a thousand registrations.
FETCH_CONCURRENCY = 16
FETCH_PER_HOST = 2
# A gateway speaks for many hosts.
FETCH_PER_GATEWAY = 8
# After so many connections that failed, or took this long, a host is left alone for the rest of a run.
FETCH_HOST_STRIKES_MAX = 3
FETCH_SLOW_S = 5.0
# A file is asked for again after this long, and a dead one later after every failure.
DOCUMENT_TTL_S = 86_400
FAILED_TTL_S = 3_600
FAILED_TTL_S_MAX = 30 * 86_400
# A file that was good is given up after so many failures in a row.
FAILURES_UNTIL_GONE = 3
# Documents held at once and stored in one transaction: a URI and what it leads to may be a megabyte together.
FETCH_BATCH = 100
# Files after which those fetched can be searched, and how long a sync reads the chain before it fetches the newest.
TEXTS_EVERY = 10 * FETCH_BATCH
FIRST_FILES_S = 2.0
# Documents of one run of `discover sync`; the next run goes on.
FETCH_RUN_MAX = 50_000

# Endpoints of a chain that are asked who an agent is before it is paid.
WITNESSES = 2

# Probes

PROBE_TIMEOUT_S = 10.0
# A probe says how it was then; the weight of an old one halves in this time.
PROBE_HALF_LIFE_S = 7 * 86_400
PROBES_KEPT = 20
# Endpoints of one agent that are asked.
PROBE_ENDPOINTS_MAX = 6
# The list of models of an endpoint, and how many of it are kept.
MODELS_BYTES_MAX = 256 * 1024
MODELS_MAX = 32
# An agent is looked at again after this long; so many in one run, stored so many at a time.
SURVEY_TTL_S = 6 * 3_600
SURVEY_RUN_MAX = 20_000
SURVEY_BATCH = 100

# Search

SEARCH_WORDS_MAX = 12
# Candidates of the full text that are ranked by everything else.
SEARCH_CANDIDATES_MAX = 400
SEARCH_LIMIT_MAX = 200

# Reputation

# The weight of a rating halves in this time.
RATING_HALF_LIFE_S = 90 * 86_400
# Ratings of one reviewer that count for one agent and tag.
RATINGS_PER_REVIEWER = 3

# Feedback files looked at for one agent in one run.
PROOFS_RUN_MAX = 200

# Bazaar

BAZAAR_PAGE_ITEMS = 100
BAZAAR_PAGES_MAX = 400
BAZAAR_PAGE_BYTES_MAX = 4 * 1024 * 1024
BAZAAR_TIMEOUT_S = 30.0

# Reading a chain

# Blocks one request for logs spans at first; halved on every refusal, doubled on success, learned per endpoint.
WINDOW_BLOCKS = 10_000
WINDOW_BLOCKS_MAX = 1_000_000
# Answers after a refusal before more is asked for again.
GROW_AFTER_ANSWERS = 4
# Halvings and fail-overs in a row without one answer, before a sync gives up (what it has is kept).
SYNC_FAILURES_MAX = 30
# Rests of an endpoint that failed: doubled with every failure, up to the maximum.
ENDPOINT_REST_S = 0.5
ENDPOINT_REST_S_MAX = 5.0
# A block said to be higher than this is none: no chain gets there, and a store's integers end soon after.
BLOCK_NUMBER_MAX = 2**62
# More agents than this nobody has paid the gas for.
AGENTS_MAX = 2**40
# Hashes kept below each head: a re-org within them is followed to its common ancestor, a deeper one costs more reading.
CHECKPOINT_BLOCKS = 64
CHECKPOINTS_MAX = 1024
# Endpoints whose heads differ by more than the blocks of a slow moment are told apart to the user.
HEADS_APART_TOLD = 16
# Times a small question is put to one endpoint before another, or another round, is tried.
READ_TRIES_MAX = 4
# Times a sync begins again because the chain moved, or an endpoint lied.
SYNC_ROUNDS_MAX = 12
# Agents whose state is read from the chain after a sync and compared with what the logs said.
SAMPLE_AGENTS = 64
# Longest piece of metadata on chain, and tag or key, that is kept.
METADATA_BYTES_MAX = 4096
TAG_CHARS_MAX = 128
# One row of an exported index: the longest URI as hex, and some.
EXPORT_LINE_BYTES_MAX = 8 * 1024 * 1024
EXPORT_ROWS_AT_ONCE = 1000

# Registering and rating

# A note in a rating; with it the whole file still fits into the URI of an event that clients keep.
FEEDBACK_NOTE_CHARS_MAX = 280

# The registry takes a wallet's proof for five minutes of the chain's time; a minute of it is left to be mined in.
WALLET_PROOF_S = 240
