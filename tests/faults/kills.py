"""`kill -9` at random moments, a thousand times: `python -m tests.faults.kills --kills 1000` (`make test-kill`).

Every cycle begins calls through the gateway, kills one or more of gateway, seller and settlement worker at a random
moment, starts them again, lets each client repeat its own request until it has its goods, and then compares both stores
with the chain and with what the clients hold. Every hundred kills the town is new, with another settlement policy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from contracts.evm.devnet import Devnet
from tests.faults.asking import Answer, ask_until_final, body_of
from tests.faults.audit import differences, read_books
from tests.faults.town import Town, town
from tests.patience import PATIENCE_S
from tests.stores.servers import own_server
from tests.warm import Warm, clean_environment

__all__ = ["Tally", "storm"]

Say = Callable[["Tally", list[str]], None] | None

VICTIMS = (("serve",), ("sell",), ("settle",), ("serve", "sell"), ("sell", "settle"), ("serve", "sell", "settle"))
POLICIES = ("auto", "before", "after", "async")
KILLS_PER_TOWN = 100
CALLS_PER_CYCLE = 4
# Calls end within some 300 ms on an idle machine: most kills find some of them on their way.
KILL_WITHIN_S = 0.3


@dataclass(slots=True)
class Tally:
    """What a storm did and found. `in_flight` counts the kills that found calls without an answer.

    `cut_streams`: streams whose first part had left when the seller died; their clients get that part again, and the
    statement that there is no more of it.
    """

    kills: int = 0
    in_flight: int = 0
    calls: int = 0
    repeats: int = 0
    cut_streams: int = 0
    selfchecks: int = 0
    problems: list[str] = field(default_factory=list)
    victims: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """Return the figures: what was lost and what was doubled, of money, goods and books."""
        words = Counter(problem.partition(":")[0] for problem in self.problems)
        lost, undelivered, doubled = words["lost"], words["undelivered"], words["doubled"]
        return {
            "kills": self.kills,
            "kills_with_calls_in_flight": self.in_flight,
            "kills_by_victim": dict(self.victims),
            "calls": self.calls,
            "repeats": self.repeats,
            "final_answers": dict(self.answers),
            "cut_streams": self.cut_streams,
            "selfchecks": self.selfchecks,
            "lost": lost + undelivered,
            "lost_money": lost,
            "lost_goods": undelivered,
            "doubled": doubled,
            "other_problems": len(self.problems) - lost - undelivered - doubled,
        }


def storm(
    folder: Path,
    warm: Warm,
    chain: Devnet,
    kills: int,
    *,
    per_town: int = KILLS_PER_TOWN,
    seed: int = 1,
    say: Say = None,
    new_store: Callable[[], str] = str,
) -> Tally:
    """Kill `kills` times and return what was found. `say(tally, new problems)` is called from time to time.

    `new_store` gives each town the URL of an empty database; by default it has files of its own.
    """
    tally, dice = Tally(), random.Random(seed)
    for number in range(0, kills, per_town):
        place = folder / f"town-{number}"
        place.mkdir()
        policy = POLICIES[(number // per_town) % len(POLICIES)]
        with town(place, chain, warm, settle=policy, store=new_store()) as here:
            _storm_in(here, min(per_town, kills - number), tally, dice, say)
    return tally


def _storm_in(here: Town, kills: int, tally: Tally, dice: random.Random, say: Say) -> None:
    # An authorization that a seller has seen never serves another request, so each call may take one.
    signed = (kills + 1) * CALLS_PER_CYCLE
    here.start_all(signed)
    for cycle in range(kills):
        victims = dice.choice(VICTIMS)
        before = len(tally.problems)
        asyncio.run(_cycle(here, cycle, victims, tally, dice))
        tally.kills += 1
        tally.victims["+".join(victims)] += 1
        # It brings the buyer's books up to date with what the gateway has noted beside them.
        _selfcheck(here, tally)
        tally.problems += [f"{text} (after kill {tally.kills})" for text in _audit(here, signed, quiet=False)]
        if say and (tally.kills % 20 == 0 or len(tally.problems) > before):
            say(tally, tally.problems[before:])
    _wait_quiet(here)
    here.farebox("process", "--all")
    tally.problems += _audit(here, signed, quiet=True)
    _selfcheck(here, tally)


async def _cycle(here: Town, cycle: int, victims: tuple[str, ...], tally: Tally, dice: random.Random) -> None:
    moment_s = dice.random() * KILL_WITHIN_S
    async with httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client:
        calls = [
            asyncio.create_task(_call(here, client, f"{cycle}-{number}", dice.random(), tally, has_id=number % 2 == 0))
            for number in range(CALLS_PER_CYCLE)
        ]
        await asyncio.sleep(moment_s)
        tally.in_flight += any(not call.done() for call in calls)
        await asyncio.to_thread(here.kill, *victims)
        # Any order may happen after a crash; none may matter.
        for name in dice.sample(victims, len(victims)):
            await asyncio.to_thread(here.start, name)
        for answer in await asyncio.gather(*calls):
            tally.calls += 1
            tally.answers[f"{answer.status} {answer.code}".strip()] += 1
            tally.cut_streams += answer.code == "answer_incomplete"
            if answer.status != 200:
                tally.problems.append(f"undelivered: a request ended without its goods: {answer.status} {answer.code}")


async def _call(
    here: Town, client: httpx.AsyncClient, name: str, chance: float, tally: Tally, *, has_id: bool
) -> Answer:
    """Ask until there is an answer; without an id, which the gateway notes beside its books."""
    body = body_of(f"call {name}", {"x-test-delay-ms": str(int(chance * 1000) % 40)}, stream=chance < 0.5)
    answer = await ask_until_final(here, client, f"call-{name}" if has_id else "", body)
    tally.repeats += answer.repeats
    return answer


def _audit(here: Town, signed: int, *, quiet: bool) -> list[str]:
    return differences(read_books(here), signed=signed, quiet=quiet)


def _selfcheck(here: Town, tally: Tally) -> None:
    words = ("selfcheck", "--rpc", here.chain.rpc_url, "--seller", "seller.yaml", "--json")
    code, output = here.farebox(*words, expect=None)
    tally.selfchecks += 1
    if code != 0:
        tally.problems.append(f"selfcheck: exit code {code} after kill {tally.kills}:\n{output}")


def _wait_quiet(here: Town) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while read_books(here).outstanding_atomic and time.monotonic() < deadline:
        time.sleep(0.1)


@contextmanager
def _stores(kind: str) -> Iterator[Callable[[], str]]:
    if kind == "sqlite":
        yield str
        return
    with own_server() as server:
        server.wait_settled()
        yield server.new_database


def main() -> None:
    """Run a storm and print its figures as one JSON document; exit 1 when anything was lost or doubled."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims and moments")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="of pool and ledger")
    options = parser.parse_args()
    started = time.monotonic()

    def say(tally: Tally, problems: list[str]) -> None:
        words = "".join(f"\n  {problem}" for problem in problems)
        figures = tally.document()
        sys.stderr.write(
            f"{time.monotonic() - started:.0f} s: {tally.kills} kills, {tally.calls} calls, "
            f"{figures['lost']} lost, {figures['doubled']} doubled, {figures['other_problems']} other{words}\n"
        )

    with tempfile.TemporaryDirectory(prefix="farebox-kills-") as folder:
        with Warm(clean_environment()) as warm, Devnet() as chain, _stores(options.store) as new_store:
            tally = storm(Path(folder), warm, chain, options.kills, seed=options.seed, say=say, new_store=new_store)
    sys.stdout.write(json.dumps({**tally.document(), "seconds": round(time.monotonic() - started)}, indent=2) + "\n")
    sys.stdout.write("".join(f"{problem}\n" for problem in tally.problems[:50]))
    sys.exit(bool(tally.problems))


if __name__ == "__main__":
    main()
