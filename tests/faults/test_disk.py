"""A disk that is full at write n, for every n: new money is refused, nothing is lost, and it goes on by itself.

The limit is the kernel's own (RLIMIT_FSIZE, set from outside on the running process): the write-ahead log may grow by n
more pages, and the write after that fails.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from contracts.evm.devnet import Devnet
from tests.faults.asking import body_of, repeat_until_final
from tests.faults.audit import read_books
from tests.faults.place import Place, check_books, paid_for
from tests.faults.town import Town
from tests.patience import PATIENCE_S
from tests.warm import Warm

# A page of SQLite and its header in the write-ahead log.
FRAME_BYTES = 4096 + 24
# An ordinary call writes fewer pages than this in every process; beyond, the limit is not reached.
PAGES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, world: Devnet, warm: Warm) -> Iterator[dict[str, Place]]:
    built = {settle: Place(tmp_path_factory.mktemp("disk"), world, warm, settle) for settle in ("auto", "async")}
    yield built
    for place in built.values():
        place.close()


@contextmanager
def full_disk(here: Town, part: str, store: Path, pages: int) -> Iterator[None]:
    """Let a process write `pages` more pages to its store, and no more."""
    pid, log = here.running[part].pid, store.with_name(store.name + "-wal")
    size = log.stat().st_size if log.exists() else 0
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + pages * FRAME_BYTES, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


@pytest.mark.parametrize("part", ["serve", "sell"])
def test_a_disk_that_is_full_at_any_write_costs_nobody_anything(places: dict[str, Place], part: str) -> None:
    with places["auto"].visit() as here:
        store = here.pool_file if part == "serve" else here.seller_file
        before_atomic, refused = here.earned_atomic(), 0
        for pages in PAGES:
            name = f"{part}, {pages} pages left"
            with full_disk(here, part, store, pages):
                answer = ask_once(here, name)
                assert answer.status_code in (200, 502, 503), answer.text
                refused += answer.status_code != 200
                assert httpx.get(f"{here.gateway_url}/healthz", timeout=PATIENCE_S).status_code == 200
                assert httpx.get(f"{here.seller_url}/v1/models", timeout=PATIENCE_S).status_code == 200
            if answer.status_code != 200:
                again = repeat_until_final(here, name, body_of(name))
                assert again.status == 200, (pages, answer.text, again)
            assert here.runs_by_prompt()[name] <= 2
        assert refused, "the disk was never full"
        check_books(here)
        assert paid_for(here, before_atomic) == len(PAGES)


def test_a_settlement_worker_whose_disk_is_full_settles_everything_when_there_is_room(places: dict[str, Place]) -> None:
    with places["async"].visit() as here:
        before_atomic = here.earned_atomic()
        for pages in PAGES:
            with full_disk(here, "settle", here.seller_file, pages):
                assert ask_once(here, f"settle, {pages} pages left").status_code == 200
                here.wait_for(lambda: stands_still(here) or not owed(here), here.running["settle"], "it did not try")
        here.wait_for(lambda: not owed(here), here.running["settle"], "payments are outstanding")
        check_books(here)
        assert paid_for(here, before_atomic) == len(PAGES)


def ask_once(here: Town, name: str) -> httpx.Response:
    headers = {"x-farebox-request-id": name}
    url = f"{here.gateway_url}/v1/chat/completions"
    return httpx.post(url, json=body_of(name), headers=headers, timeout=60)


def stands_still(here: Town) -> bool:
    return httpx.get(f"{here.settle_admin_url}/readyz", timeout=PATIENCE_S).status_code == 503


def owed(here: Town) -> int:
    return read_books(here).outstanding_atomic
