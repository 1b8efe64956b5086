"""Every bound of the delegator."""

from __future__ import annotations

# A plan. The graph of one task is small; anything larger is a mistake or an attack.
NODES_MAX = 64
DEPTH_MAX = 12
FAN_OUT_MAX = 16
NEEDS_MAX = 16
INPUTS_MAX = 16
PLAN_BYTES_MAX = 200_000
GOAL_LENGTH_MAX = 20_000
ID_LENGTH_MAX = 40
PATH_LENGTH_MAX = 200
EST_TOKENS_MAX = 100_000
PROBLEMS_SHOWN_MAX = 20

# Scheduling: trials of an upgrade, some tens of microseconds each.
UPGRADE_TRIALS_MAX = 20_000

# What one worker is told.
INPUT_LENGTH_MAX = 40_000
PROMPT_LENGTH_MAX = 200_000

# A run.
ATTEMPTS_MAX = 3
PARALLEL_MAX = 16
RESULT_LENGTH_MAX = 100_000
EVENTS_QUEUED_MAX = 1_000
# How often the rest of a task is planned anew after a failure.
REPLANS_MAX = 1

# A second seller is asked where the first takes this many times its estimate and the deadline is in danger.
HEDGE_AFTER = 1.5
# How long a finished run waits for the slower of two sellers; later its price counts in full, until a `resume` asks.
LOSERS_WAIT_S = 5.0

# How often a process looks for runs of processes that have ended.
RECOVER_EVERY_S = 10.0

# Answers of cacheable nodes, of each tenant.
ANSWERS_KEPT_MAX = 1_000
ANSWER_KEPT_S = 7 * 86_400

# What a run may be told to keep to, and settings.
DEADLINE_S_MAX = 86_400.0
MODELS_MAX = 200
SLOTS_MAX = 1_000
# A task must fit into one goal: it may have to be done in one call.
TASK_LENGTH_MAX = GOAL_LENGTH_MAX

# Ways that are looked at for one node; more are cut, dearest first.
WAYS_MAX = 32
# Of what is left of a budget, the percentage that is kept for calls that must be repeated.
RETRY_PERCENT = 15

# One purchase: how often a payment that has no answer yet is presented again, and the pauses between.
ASKS_MAX = 4
ASK_PAUSE_S = 0.5
ASK_PAUSE_S_MAX = 10.0
# How long a run that is over waits for calls whose payment has left; their answers are kept for `resume`.
LEFT_BEHIND_S = 20.0

# The planner's call, and how often it may try.
PLANNER_TOKENS_MAX = 4_000
PLANNER_ROUNDS = 2

# Tasks that a gateway carries out at once.
RUNS_MAX = 32
# Of these, what one client key may take, unless the settings say otherwise.
RUNS_PER_KEY = RUNS_MAX // 2
# A stream in which nothing happens says so this often: proxies end silent connections after a minute.
HEARTBEAT_S = 15.0
