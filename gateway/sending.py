"""One contract call of the user's own wallet: priced, shown, agreed to, sent, and its receipt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from buyer.signers import Signer
from buyer.transact import check_gas, coin, cost_max_wei, price, submit
from contracts.evm.rpc import Rpc
from contracts.networks import Network
from contracts.schemes.authorization import Call

__all__ = ["Sending", "Sent"]


@dataclass(slots=True)
class Sent:
    """What was sent, or with a dry run would be; the cost is the most it may be, in wei of the chain's own coin."""

    transactions: list[str] = field(default_factory=list)
    gas_limit: int = 0
    cost_max_wei: int = 0

    def document(self) -> dict[str, Any]:
        """Return it as a part of a run's JSON document."""
        return {
            "transactions": self.transactions,
            "gas_limit": self.gas_limit,
            "cost_max_wei": str(self.cost_max_wei),
            "cost_max": coin(self.cost_max_wei),
        }

    def lines(self, *, dry_run: bool) -> list[str]:
        """Return it for a person."""
        cost = f"at most {coin(self.cost_max_wei)} of the chain's coin ({self.gas_limit:,} gas)"
        return [f"{'would cost' if dry_run else 'cost'} {cost}", *(f"transaction {each}" for each in self.transactions)]


@dataclass(frozen=True, slots=True)
class Sending:
    """How calls are sent: by whom, whether at all, and who is asked before anything is signed."""

    network: Network
    signer: Signer
    dry_run: bool
    agree: Callable[[str], None]

    async def send(self, rpc: Rpc, call: Call, what: str, sent: Sent) -> dict[str, Any] | None:
        """Send one call, add it to `sent` and return its receipt; None after a dry run, which only prices it.

        Raises what `buyer.transact` does: `SettlementFailed`, `InsufficientBalance`, `ChainUnavailable`.
        """
        sender = self.signer.address
        transactions = await price(rpc, self.network.chain_id, sender, [call])
        cost_wei = cost_max_wei(transactions)
        sent.gas_limit += transactions[0].gas_limit
        sent.cost_max_wei += cost_wei
        if self.dry_run:
            return None
        await check_gas(rpc, sender, transactions, what)
        self.agree(
            f"{what[0].upper()}{what[1:]}, on {self.network.label}, for at most {coin(cost_wei)} of its coin"
            f" ({transactions[0].gas_limit:,} gas). Go on?"
        )
        (transaction,) = await submit(rpc, self.signer, transactions, what)
        sent.transactions.append(transaction)
        receipt: dict[str, Any] = await rpc.call("eth_getTransactionReceipt", transaction)
        return receipt
