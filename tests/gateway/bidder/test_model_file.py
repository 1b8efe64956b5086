"""Model files: only what this install wrote, and only with every index inside its table."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from gateway.bidder.choose import choose
from gateway.bidder.features import Row
from gateway.bidder.limits import MODELS_KEPT
from gateway.bidder.market import Market
from gateway.bidder.model import Example, Forest, train
from gateway.bidder.model_file import Manifest, ModelRefused, check_text, install_key, load, save
from gateway.bidder.rule import QueueRule
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Task

MANIFEST = Manifest(rows=400, created_s=1_700_000_000, metrics={"log_loss": 0.31}, library="4.7.0")


def rows(count: int) -> list[Row]:
    random, market, made = Random(1), Market(), []
    for _ in range(count):
        task = Task(random.uniform(0.2, 3), random.uniform(1, 20), UNITS_PER_TOKEN, UNITS_PER_TOKEN, random.random())
        offer = Offer("o", str(random.randrange(6)), UNITS_PER_TOKEN // 10, random.randrange(3), random.uniform(0.5, 2))
        market.see(task, offer)
        made.append(choose(task, [offer], market, 0.0, policy=QueueRule(), random=random).view.rows[0])
    return made


@pytest.fixture(scope="module")
def forest() -> Forest:
    random = Random(2)
    return train([Example(row, random.expovariate(0.4), row[15] % 2 == 0) for row in rows(400)], seed=1)


@pytest.fixture
def key(tmp_path: Path) -> bytes:
    return install_key(tmp_path / "key")


def test_a_model_reads_back_as_it_was(forest: Forest, key: bytes, tmp_path: Path) -> None:
    name = save(forest, MANIFEST, tmp_path / "models", key)
    again, manifest = load(tmp_path / "models" / name, key)
    assert again.p_good(rows(20)) == forest.p_good(rows(20))
    assert manifest == MANIFEST
    for path in (tmp_path / "models" / name).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_install_does_not_believe_it(forest: Forest, key: bytes, tmp_path: Path) -> None:
    name = save(forest, MANIFEST, tmp_path / "models", key)
    with pytest.raises(ModelRefused, match="not made by this install"):
        load(tmp_path / "models" / name, install_key(tmp_path / "other"))


@pytest.mark.parametrize("file", ["on_time.txt", "quality.txt"])
def test_a_changed_byte_is_refused(forest: Forest, key: bytes, tmp_path: Path, file: str) -> None:
    path = tmp_path / "models" / save(forest, MANIFEST, tmp_path / "models", key)
    text = (path / file).read_text()
    (path / file).write_text(text.replace("leaf_value=", "leaf_value=1", 1))
    with pytest.raises(ModelRefused, match="not the file its manifest names"):
        load(path, key)


def test_a_manifest_with_other_figures_is_refused(forest: Forest, key: bytes, tmp_path: Path) -> None:
    path = tmp_path / "models" / save(forest, MANIFEST, tmp_path / "models", key)
    stated = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**stated, "rows": 9_999}))
    with pytest.raises(ModelRefused):
        load(path, key)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"hmac": 1}', "\x00"])
def test_a_manifest_that_is_none_is_refused(forest: Forest, key: bytes, tmp_path: Path, text: str) -> None:
    path = tmp_path / "models" / save(forest, MANIFEST, tmp_path / "models", key)
    (path / "manifest.json").write_text(text)
    with pytest.raises(ModelRefused):
        load(path, key)


def _set(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """Return a change of one line of the first tree that has more than two leaves."""

    def apply(text: str) -> str:
        head, *trees = text.split("\nTree=")
        lines = trees[0].split("\n")
        lines = [
            f"{name}=" + " ".join(change(line.partition("=")[2].split())) if line.startswith(f"{name}=") else line
            for line in lines
        ]
        return "\nTree=".join([head, "\n".join(lines), *trees[1:]])

    return apply


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_set("split_feature", lambda words: ["19", *words[1:]]), "split_feature: points outside"),
        (_set("split_feature", lambda words: ["-1", *words[1:]]), "split_feature: points outside"),
        (_set("left_child", lambda words: ["99999", *words[1:]]), "left_child: points outside"),
        (_set("left_child", lambda words: ["-99999", *words[1:]]), "left_child: points outside"),
        (_set("left_child", lambda words: ["0", *words[1:]]), "left_child goes back"),
        (_set("left_child", lambda words: [*words[:-1], "1.5"]), "left_child is no list of integers"),
        (_set("left_child", lambda words: [words[-1], *words[1:]]), "is not one tree"),
        (_set("right_child", lambda words: words[1:]), "right_child: expected"),
        (_set("num_leaves", lambda _: ["1000000000"]), "1000000000 leaves"),
        (_set("num_cat", lambda _: ["-1"]), "-1 categories"),
        (_set("leaf_value", lambda words: ["nan", *words[1:]]), "leaf_value: expected"),
        (_set("leaf_value", lambda words: ["1e999", *words[1:]]), "leaf_value: expected finite"),
        (_set("threshold", lambda words: words[1:]), "threshold: expected"),
        (_set("cat_boundaries", lambda words: ["0", "4000000"]), "cat_"),
        (_set("cat_boundaries", lambda words: ["1", *words[1:]]), "cat_boundaries do not rise"),
        (lambda text: text.replace("max_feature_idx=18", "max_feature_idx=400000"), "expected 19 features"),
        (lambda text: text.partition("\nTree=")[0], "got 0"),
    ],
)
def test_an_index_outside_of_its_table_is_refused_whoever_signed_it(
    forest: Forest, damage: Callable[[str], str], reason: str
) -> None:
    text = forest.quality.model_to_string()
    check_text(text, "sound")
    damaged = damage(text)
    assert damaged != text
    with pytest.raises(ModelRefused, match=reason):
        check_text(damaged, "damaged")


def test_old_models_are_removed(forest: Forest, key: bytes, tmp_path: Path) -> None:
    newest = ""
    for rows_used in range(MODELS_KEPT + 3):
        manifest = Manifest(rows_used, 0, {}, "4")
        newest = save(forest, manifest, tmp_path / "models", key)
    kept = [path.name for path in (tmp_path / "models").iterdir()]
    assert len(kept) == MODELS_KEPT
    assert newest in kept


def test_a_key_file_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ModelRefused):
        install_key(tmp_path / "key")
