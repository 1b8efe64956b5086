"""Every bound of background work."""

from __future__ import annotations

# Tasks that wait or are being bought, and what one may ask and be answered.
TASKS_MAX = 10_000
REQUEST_BYTES_MAX = 200_000
RESULT_LENGTH_MAX = 1_000_000
MODEL_LENGTH_MAX = 200
LIVES_HOURS_MAX = 24 * 30
TOKENS_MAX = 100_000
# Ended tasks are kept for so long.
KEPT_S = 30 * 86_400
LISTED_MAX = 1_000

# Calls of one process under way, and at a seller that does not tell how many slots it has.
AT_ONCE_MAX = 32
AT_ONCE_UNTOLD = 1
DUE_MAX = 64

# How often is looked for something to do, and how long a task is put off that its seller has no room for.
LOOK_EVERY_S = 0.5
PUT_OFF_S = 1.0
PUT_OFF_S_MAX = 60.0
# How long whoever stops waits for calls whose payment has left.
STOP_S = 20.0
