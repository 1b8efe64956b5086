"""What a chain's node says is nonsense sometimes: a command then says so, and no book of money is changed by it."""

from __future__ import annotations

from typing import Any

from tests.buyer.town import Town
from tests.faults.rpc_proxy import RpcProxy

NONSENSE: tuple[Any, ...] = (None, {}, "0x" + "f" * 80)
METHODS = (
    "eth_chainId",
    "eth_call",
    "eth_getCode",
    "eth_getBlockByNumber",
    "eth_getTransactionCount",
    "eth_maxPriorityFeePerGas",
    "eth_estimateGas",
    "eth_getBalance",
)


def test_a_node_that_answers_nonsense_is_told_of_and_changes_nothing(town: Town) -> None:
    assert town.buy()[0] == 0
    town.spend(1, "lost")
    before = town.counts()
    with RpcProxy(town.chain.rpc_url) as node:
        wallet = ["--signer", f"keyfile:{town.key_file}", "--rpc", node.url]
        approve = ["approve", "--token", town.chain.token, "--amount", "1", "--yes"]
        for method in METHODS:
            for answer in NONSENSE:
                fault = node.inject(method, "lie", times=100, lie=lambda _params, _result: answer)  # noqa: B023
                for words in (["process", "p"], approve):
                    _, document, _ = town.run(*words, *wallet)
                    assert document is not None, f"{words[0]} ended without a word when {method} was {answer!r}"
                fault.times = 0
    assert town.counts() == before
