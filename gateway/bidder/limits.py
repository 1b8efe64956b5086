"""Every bound of the bidder."""

from __future__ import annotations

# Offers that are looked at for one call; more are cut, dearest first.
OFFERS_MAX = 64
# Sellers that are remembered.
SELLERS_MAX = 256
# Arms (a seller's tier) that the linear bandit tells apart; the rest share one.
ARMS_MAX = 96

# Exploration: how often, and how dear it may be at most.
EXPLORE_SHARE = 0.02
EXPLORE_SHARE_AFTER_DRIFT = 0.05
EXPLORE_OF_CAP_PERCENT = 50
EXPLORE_OF_DAY_PERCENT = 3

# A call whose deadline is this many times its work away may wait for a price to come down.
WAIT_SLACK = 4.0

# Training: the first model, how often a new one is made while little is known and later, and from how many outcomes.
TRAIN_FIRST = 150
TRAIN_EVERY_EARLY = 250
TRAIN_EVERY = 500
TRAIN_EARLY_UNTIL = 1_000
TRAIN_EVERY_S = 600.0
TRAIN_WINDOW = 8_000

# Sealed limits: answers before a model is made, between two of them, and kept to learn from.
SEALED_FIRST = 150
SEALED_EVERY = 200
SEALED_WINDOW = 3_000

# Model files.
MODEL_BYTES_MAX = 5_000_000
MODEL_TREES_MAX = 1_000
MODELS_KEPT = 5

# The life of a model: outcomes in the shadow before it decides, and outcomes by which a model is judged afterwards.
SHADOW_OUTCOMES = 100
WATCHED_OUTCOMES = 300
MODEL_AGE_MAX_S = 86_400.0
# A decision that takes longer than this is not worth its model.
CHOOSE_MAX_S = 0.020

# Drift: outcomes of a seller before it can be noticed, what is forgotten then, and how many decisions explore more.
DRIFT_OUTCOMES_MIN = 60
TRAIN_WINDOW_AFTER_DRIFT = 1_000
EXPLORE_MORE_FOR = 300
TRAIN_TIMEOUT_S = 120.0

# The event log.
EVENTS_KEPT = 200_000
CHOOSE_SLOW_MAX = 3
OBSERVATIONS_QUEUED_MAX = 1_000
