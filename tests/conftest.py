"""Fixtures every room shares: the local chain, and a warm process from which commands are forked."""

from __future__ import annotations

import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx._config
import httpx._transports.default
import hypothesis
import pytest

import contracts.evm.rpc
from contracts.evm.devnet import Devnet
from contracts.limits import RPC_TIMEOUT_S
from contracts.tls import tls_context
from tests.patience import PATIENCE_S
from tests.warm import Warm, clean_environment

# A run in the background of a shell starts with interrupts ignored, and every process it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test fails by the clock: the first example of a property pays for its imports, and a machine may be slow to make
# examples. They are the same in every run, so that what fails was broken by a change; `--hypothesis-profile=explore`
# looks for others.
_EVERY_RUN = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("explore", _EVERY_RUN)
hypothesis.settings.register_profile("same", _EVERY_RUN, derandomize=True)
hypothesis.settings.load_profile("same")


def _shared_tls_context(verify: Any = True, **given: Any) -> ssl.SSLContext:
    return tls_context() if verify is True else httpx.create_ssl_context(verify, **given)


# A test that says nothing else waits for an answer as long as for anything, not the five seconds of httpx.
for _name in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _name, PATIENCE_S)
# And its connections do not grow as old as the five seconds after which uvicorn closes them: nothing is asked on one
# that is being closed.
httpx._config.DEFAULT_LIMITS.keepalive_expiry = 1.0
vars(httpx.Limits)["__init__"].__kwdefaults__["keepalive_expiry"] = 1.0

# Connections to loopback are there at once; three seconds are a standstill of the machine, and no node that is away.
vars(contracts.evm.rpc)["RPC_CONNECT_TIMEOUT_S"] = RPC_TIMEOUT_S

# Each `httpx.get` of a test would read the world's authorities, 14 ms of CPU, and most are made while waiting.
vars(httpx._transports.default)["create_ssl_context"] = _shared_tls_context

TESTS = Path(__file__).parent
# Workers are dealt whole files, and none shall be left alone with a long one at the end: these come first, the longest
# of them at the head, and then the others, those of many tests before those of few.
LONG = (
    "e2e/test_demo_options.py",
    "faults/test_every_step.py",
    "docs/test_commands.py",
    "bench/test_bench.py",
    "faults/test_clock.py",
    "litellm/test_proxy.py",
    "e2e/test_kill9.py",
    "stores/test_pool.py",
    "faults/test_leaving.py",
    "gateway/test_http_edges.py",
    "buyer/test_cli.py",
    "faults/test_rpc.py",
    "attacks/test_gateway_attacks.py",
    "faults/test_kills.py",
    "stores/test_two_of_each.py",
    "faults/test_facilitator.py",
    "faults/test_disk.py",
    "stores/test_store_gone.py",
    "stores/test_runs.py",
    "faults/test_buyer_writes.py",
    "gateway/test_failures.py",
    "seller/test_upto.py",
    "stores/test_gateway.py",
    "registry/test_sync.py",
    "interop/test_core.py",
    "contracts/test_stolen_agent_key.py",
    "e2e/test_no_key_in_gateway.py",
    "e2e/test_demo_minilm.py",
    "gateway/demo/test_minilm.py",
    "contracts/test_artifacts.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first."""
    tests = Counter(item.path for item in items)
    rank = {TESTS / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), -tests[item.path], item.path))


@pytest.fixture(scope="session")
def devnet() -> Iterator[Devnet]:
    """One anvil for the whole run. Take `chain` instead where a test changes anything on it."""
    with Devnet() as running:
        yield running


@pytest.fixture
def chain(devnet: Devnet) -> Iterator[Devnet]:
    """The shared local chain, put back to where it was when the test ends."""
    before = devnet.snapshot()
    yield devnet
    devnet.revert(before)


@pytest.fixture
def own_chain() -> Iterator[Devnet]:
    """A chain for one test: anvil re-organises a chain that was put back before onto a state that never was."""
    with Devnet() as running:
        yield running


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """A process that has imported every command, for the whole run."""
    with Warm(clean_environment()) as running:
        yield running
