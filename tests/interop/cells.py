"""The matrix as values: who buys, who sells, who settles, on which rail, and which of these cannot meet."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Cell", "Client", "Rail", "Server", "Settlement", "Stall", "cells", "impossible", "stalls"]


class Client(StrEnum):
    OURS = "our client"
    GATEWAY = "our gateway"
    PYTHON = "official Python"
    FETCH = "official fetch"


class Server(StrEnum):
    MIDDLEWARE = "our middleware"
    PROXY = "our reverse proxy"
    FASTAPI = "official FastAPI"
    EXPRESS = "official express"
    HONO = "official hono"

    @property
    def is_ours(self) -> bool:
        return self in (Server.MIDDLEWARE, Server.PROXY)


class Settlement(StrEnum):
    ENGINE = "our engine"
    OURS = "our facilitator"
    OFFICIAL = "official facilitator"


class Rail(StrEnum):
    EIP3009 = "EIP-3009"
    PERMIT2 = "Permit2"
    UPTO = "upto"


@dataclass(frozen=True, slots=True)
class Stall:
    """One seller: a server that settles in one way and takes one rail."""

    server: Server
    settlement: Settlement
    rail: Rail

    @property
    def slug(self) -> str:
        """A name that is also the name of a purchase."""
        text = f"{self.server} {self.settlement} {self.rail}".lower()
        return "-".join(text.replace("official facilitator", "sdk").split())


@dataclass(frozen=True, slots=True)
class Cell:
    """One meeting: `client` buys at `stall`."""

    client: Client
    stall: Stall

    @property
    def name(self) -> str:
        stall = self.stall
        return f"{self.client} x {stall.server} x {stall.settlement} x {stall.rail}"


def stalls() -> list[Stall]:
    """Return every seller, those included that cannot be."""
    return [Stall(*which) for which in itertools.product(Server, Settlement, Rail)]


def cells() -> list[Cell]:
    """Return every cell of the matrix."""
    return [Cell(client, stall) for stall in stalls() for client in Client]


def impossible(stall: Stall) -> str | None:
    """Return why this seller cannot be, or None. `test_core.py` holds each reason against the peer it is about."""
    if stall.settlement is Settlement.ENGINE and not stall.server.is_ours:
        return (
            "The official servers settle through a facilitator's API and in no other way; "
            "the row of our facilitator is our engine behind that API."
        )
    return None
