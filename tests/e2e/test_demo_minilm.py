"""`farebox demo --model minilm`: the same story, with a real model behind it."""

from __future__ import annotations

from tests.e2e.parts import run_demo


def test_five_real_embeddings_are_sold_and_the_books_equal_the_chain() -> None:
    document = run_demo("--model", "minilm")
    assert document["ok"] is True
    assert (document["calls"], document["spent"], document["remaining"]) == (5, 5, 15)
    assert document["seller_delta_atomic"] == 5 * document["price_atomic"]
