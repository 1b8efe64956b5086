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
