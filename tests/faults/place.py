"""A town that many tests of one file use in turn, and the audit that each of them ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.evm.devnet import Devnet
from tests.faults.audit import differences, read_books
from tests.faults.town import PRICE_ATOMIC, Town
from tests.warm import Warm

__all__ = ["CALLS", "Place", "check_books", "paid_for"]

CALLS = 60


@dataclass
class Place:
    """A town that many tests use in turn; a test that fails leaves the next one a new town."""

    folder: Path
    chain: Devnet
    warm: Warm
    settle: str
    town: Town | None = None
    broken: bool = True
    built: int = 0

    @contextmanager
    def visit(self) -> Iterator[Town]:
        """Give the town, with everything running."""
        if self.broken or self.town is None:
            self.close()
            self.built += 1
            folder = self.folder / f"town-{self.built}"
            folder.mkdir()
            # No credit under `auto`: every payer is settled at the first byte.
            self.town = Town(folder, self.chain, self.warm, self.settle, "", "0" if self.settle == "auto" else "1.00")
            self.town.start_all(CALLS)
        self.broken = True
        yield self.town
        self.broken = False

    def close(self) -> None:
        """End all processes."""
        if self.town is not None and self.town.running:
            self.town.kill(*list(self.town.running))
        self.town = None


def check_books(here: Town, signed: int = CALLS) -> None:
    """Nothing lost, nothing doubled, and the buyer, the seller and the chain agree to the last unit."""
    here.wait_for(lambda: not read_books(here).outstanding_atomic, here.running["settle"], "payments are outstanding")
    here.farebox("process", "--all")
    found = differences(read_books(here), signed=signed, quiet=True)
    assert not found, found
    here.farebox("selfcheck", "--rpc", here.chain.rpc_url, "--seller", "seller.yaml", "--json")


def paid_for(here: Town, before_atomic: int) -> int:
    return (here.earned_atomic() - before_atomic) // PRICE_ATOMIC
