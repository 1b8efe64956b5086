"""Training in another process: a model comes back that this install believes, and the child knows no secrets."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway.bidder import trainer
from gateway.bidder.choose import choose
from gateway.bidder.market import Market
from gateway.bidder.model import Example
from gateway.bidder.rule import QueueRule
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Task
from gateway.bidder.trainer import TrainingFailed, newest, train_elsewhere


def examples(count: int) -> list[Example]:
    random, market, made = Random(1), Market(), []
    for _ in range(count):
        task = Task(random.uniform(0.2, 3), random.uniform(1, 20), UNITS_PER_TOKEN, UNITS_PER_TOKEN, random.random())
        offer = Offer("o", str(random.randrange(4)), UNITS_PER_TOKEN // 10)
        row = choose(task, [offer], market, 0.0, policy=QueueRule(), random=random).view.rows[0]
        market.see(task, offer)
        made.append(Example(row, random.expovariate(0.3), random.random() < 0.9))
    return made


async def test_a_model_is_made_elsewhere_and_found_again(tmp_path: Path) -> None:
    taught = examples(300)
    name, forest = await train_elsewhere(taught, tmp_path / "models", tmp_path / "key", seed=1)
    found = newest(tmp_path / "models", tmp_path / "key")
    assert found is not None
    assert found[0] == name
    assert found[2].rows == 300
    rows = [example.row for example in taught[:5]]
    assert found[1].p_good(rows) == forest.p_good(rows)


async def test_a_child_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingFailed, match="training process ended with"):
        await train_elsewhere([], tmp_path / "models", tmp_path / "key", seed=1)
    monkeypatch.setattr(trainer, "TRAIN_TIMEOUT_S", 0.01)
    with pytest.raises(TrainingFailed, match="no model in"):
        await train_elsewhere(examples(10), tmp_path / "models", tmp_path / "key", seed=1)


async def test_the_child_sees_no_variable_that_may_be_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    spawn = asyncio.create_subprocess_exec

    async def watch(*arguments: str, env: dict[str, str], **options: Any) -> object:
        seen.update(env)
        return await spawn(*arguments, env=env, **options)

    monkeypatch.setenv("FAREBOX_ADMIN_TOKEN", "secret")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", watch)
    await train_elsewhere(examples(200), tmp_path / "models", tmp_path / "key", seed=1)
    assert seen["OMP_NUM_THREADS"] == "1"
    assert not [name for name in seen if name.startswith("FAREBOX")]
    assert "FAREBOX_ADMIN_TOKEN" in os.environ


def test_a_folder_without_models_has_none(tmp_path: Path) -> None:
    (tmp_path / "models" / "broken").mkdir(parents=True)
    assert newest(tmp_path / "models", tmp_path / "key") is None
    assert newest(tmp_path / "none", tmp_path / "key") is None
