"""Every bound of the delegator."""

from __future__ import annotations

# A plan. The graph of one task is small; anything larger is a mistake or an attack.
NODES_MAX = 64
DEPTH_MAX = 12
FAN_OUT_MAX = 16
NEEDS_MAX = 16
INPUTS_MAX = 16
PLAN_BYTES_MAX = 200_000
GOAL_LENGTH_MAX = 4_000
ID_LENGTH_MAX = 40
PATH_LENGTH_MAX = 200
EST_TOKENS_MAX = 100_000
PROBLEMS_SHOWN_MAX = 20

# Scheduling: trials of an upgrade, each of which simulates the schedule.
UPGRADE_TRIALS_MAX = 20_000

# What one worker is told.
INPUT_LENGTH_MAX = 40_000
PROMPT_LENGTH_MAX = 200_000

# A run.
ATTEMPTS_MAX = 3
PARALLEL_MAX = 16
RESULT_LENGTH_MAX = 100_000
EVENTS_QUEUED_MAX = 1_000
