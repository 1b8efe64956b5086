"""Whether anything makes the chooser pass a cap or fall over: `python -m bench guard`.

Decisions over hostile quotes (negative and giant prices, figures that are no numbers, absurd tiers), by every policy,
with policies that lie; and model files with bytes turned, cut and swapped, which must be refused.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.processes import in_processes
from contracts.console import print_document
from gateway.bidder.choose import Exploration, choose
from gateway.bidder.features import Row, View
from gateway.bidder.linucb import LinUCB
from gateway.bidder.market import Market
from gateway.bidder.model import Example, Forest, ForestPolicy, train
from gateway.bidder.model_file import Manifest, ModelRefused, check_text, install_key, load, save
from gateway.bidder.policy import Estimate, Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest, EwmaUtility, Fastest, InverseSquare
from gateway.bidder.simulation.choosers import Chooser
from gateway.bidder.simulation.market import Ended, World, play
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Outcome, Task

__all__ = ["main"]

PARTS = 8
# Of each part, decisions by the forest: it is slower than the others together.
FOREST_SHARE = 0.05
MUTATIONS_PER_DECISION = 0.001
ODD = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, -1e308, 5e-324, 1e-9, 1.0, 3.0)


class Liar:
    """A policy whose words are random, and often no numbers."""

    name = "liar"

    def __init__(self, random: Random) -> None:
        self._random = random

    def estimate(self, view: View) -> Estimate:
        """Say anything."""
        words = [self._random.choice(ODD) for _ in view.offers]
        return self._random.choice([Estimate(p_good=words), Estimate(order=words), Estimate(weights=words)])

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Learn nothing."""


def _offer(random: Random, index: int) -> Offer:
    def odd() -> float | None:
        return None if random.random() < 0.2 else random.choice(ODD) if random.random() < 0.4 else random.random() * 5

    price = random.choice(
        [random.randrange(5 * UNITS_PER_TOKEN), 0, -1, -(10**40), 10**80, UNITS_PER_TOKEN, UNITS_PER_TOKEN + 1]
    )
    seller = str(random.randrange(300)) if random.random() < 0.3 else str(index)
    return Offer(f"o{index}", seller, price, random.randrange(-3, 6), odd(), odd(), odd(), odd())


def _task(random: Random) -> Task:
    def odd(usual: float) -> float:
        return random.choice(ODD) if random.random() < 0.1 else random.random() * usual

    cap = random.choice([UNITS_PER_TOKEN, random.randrange(5 * UNITS_PER_TOKEN), 0, 10**60])
    return Task(odd(4), odd(30), random.randrange(10 * UNITS_PER_TOKEN), cap, odd(1), random.randrange(3))


def _decide(job: tuple[int, int]) -> Counter[str]:
    """Take some hostile decisions and count what went wrong."""
    seed, count = job
    random, found = Random(seed), Counter[str]()
    market = Market()
    plain: list[Policy] = [Cheapest(), Fastest(), InverseSquare(), EwmaUtility(), QueueRule(), LinUCB(), Liar(random)]
    forest = ForestPolicy(_forest(seed))
    day_units = 10 * UNITS_PER_TOKEN
    for _ in range(count):
        policy = forest if random.random() < FOREST_SHARE else random.choice(plain)
        task, offers = _task(random), [_offer(random, index) for index in range(random.randrange(12))]
        explores = Exploration(random.choice([0.0, 0.02, 1.0]), day_units)
        try:
            chosen = choose(task, offers, market, 0.0, policy=policy, random=random, exploration=explores)
            bought = chosen.decision.offer
            if bought is not None:
                found["bought"] += 1
                found["over_cap"] += not 0 <= bought.price_units <= task.cap_units
                found["dear_experiments"] += chosen.decision.is_exploration and not explores.allows(task, bought)
                found["bad_propensity"] += not 0 < chosen.decision.propensity <= 1 + 1e-9
                row = chosen.row
                assert row is not None
                outcome = Outcome(random.choice(ODD[3:]), random.random() < 0.5, 0, random.random() < 0.1)
                market.see(task, bought)
                market.observe(task, bought, outcome, random.random() * 1e4)
                policy.observe(row, bought.arm, outcome.is_good(task))
        except Exception as error:  # noqa: BLE001 - a crash of any kind is what is counted
            found["crashes"] += 1
            found[f"crash: {type(error).__name__}: {str(error)[:80]}"] += 1
        found["decisions"] += 1
    return found


def _forest(seed: int) -> Forest:
    world = World(seed, 600)
    chooser = Chooser(QueueRule(), seed)
    examples: list[Example] = []

    def learn(ended: Ended) -> None:
        examples.append(chooser.example(ended))
        chooser.observe(ended)

    play(world, chooser.choose, learn)
    return train(examples, seed)


def _mutate_files(job: tuple[int, int]) -> Counter[str]:
    """Load damaged model files and count which were taken for good ones, and which made us fall over."""
    seed, count = job
    random, found = Random(seed), Counter[str]()
    forest = _forest(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        key = install_key(place / "key")
        name = save(forest, Manifest(600, 0, {"log_loss": 0.3}, "4"), place / "models", key)
        good = place / "models" / name
        texts = {path.name: path.read_text() for path in good.iterdir()}
        assert load(good, key)[1].rows == 600
        for _ in range(count):
            damaged = place / "damaged"
            shutil.copytree(good, damaged)
            file = random.choice(sorted(texts))
            (damaged / file).write_text(_damage(random, texts[file]))
            try:
                load(damaged, key)
                found["taken_for_good"] += (damaged / file).read_text() != texts[file] and file != "manifest.json"
            except ModelRefused:
                found["refused"] += 1
            except Exception as error:  # noqa: BLE001 - as above
                found["crashes"] += 1
                found[f"crash: {type(error).__name__}: {str(error)[:80]}"] += 1
            shutil.rmtree(damaged)
            found["mutations"] += 1
            _look_inside(random, texts["quality.txt"], found)
    return found


def _look_inside(random: Random, text: str, found: Counter[str]) -> None:
    """As if somebody had the key: what our own check lets through must neither hang nor read outside its tables."""
    damaged = _damage(random, text)
    try:
        check_text(damaged, "quality.txt")
    except ModelRefused:
        found["refused_by_index"] += 1
    except Exception as error:  # noqa: BLE001 - as above
        found["crashes"] += 1
        found[f"crash: {type(error).__name__}: {str(error)[:80]}"] += 1


def _damage(random: Random, text: str) -> str:
    place = random.randrange(len(text))
    kind = random.randrange(5)
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + chr(random.randrange(32, 127)) + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[place : place + 40] + text[place:]
    if kind == 3:
        return text.replace(random.choice(["left_child=", "split_feature=", "num_leaves=", "sha256"]), "x=", 1)
    words = text.split(" ")
    spot = random.randrange(len(words))
    words[spot] = random.choice(["-99999", "99999999999", "nan", "1e999", "0", json.dumps(None)])
    return " ".join(words)


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench guard", description=__doc__)
    parser.add_argument("--fuzz", type=int, default=1_000_000, help="how many decisions (1000000)")
    parser.add_argument("--seed-base", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.fuzz < PARTS:
        parser.error(f"--fuzz: expected at least {PARTS}")
    started = time.monotonic()
    seeds = range(options.seed_base, options.seed_base + PARTS)
    found: Counter[str] = Counter()
    for part in in_processes(_decide, [(seed, math.ceil(options.fuzz / PARTS)) for seed in seeds]):
        found.update(part)
    mutations = max(1, math.ceil(options.fuzz * MUTATIONS_PER_DECISION / PARTS))
    for part in in_processes(_mutate_files, [(seed, mutations) for seed in seeds]):
        found.update(part)
    gates = [
        Gate("bought above the cap", "at most", 0, found["over_cap"]),
        Gate("experiments above their share", "at most", 0, found["dear_experiments"]),
        Gate("propensities that are none", "at most", 0, found["bad_propensity"]),
        Gate("damaged models taken for good ones", "at most", 0, found["taken_for_good"]),
        Gate("crashes", "at most", 0, found["crashes"]),
    ]
    document = {
        "machine": this_machine(),
        "found": dict(found),
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(found, gates))
    return 0 if gates_met(gates) else 1


def _print(found: Counter[str], gates: Sequence[Gate]) -> None:
    for name, count in sorted(found.items()):
        print(f"{count:>10,}  {name.replace('_', ' ')}")
    print()
    print("\n".join(gate_lines(gates)))
