"""One cell: a client buys twice at a seller, and both the client and the chain must say that it was right."""

from __future__ import annotations

import base64
import time
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
from x402.http.utils import decode_payment_required_header
from x402.schemas import PaymentRequired

from contracts.evm.devnet import DevAccount
from contracts.headers import decode_payment_required
from tests.interop.buyers import Buyers, Purse
from tests.interop.cells import Client
from tests.interop.goods import CHAT, Bought, chat, is_right, offered_atomic, price_atomic
from tests.interop.sellers import OpenStall
from tests.interop.street import Street
from tests.patience import PATIENCE_S

__all__ = ["check_unpaid", "meet", "streams_live"]

_POLL_S = 0.02
# A seller that holds a stream back holds it for good; one that does not has sent its first piece long before.
_HELD_BACK_S = 0.5


class _Books:
    """What the payee has got and the payer has lost since they were opened, on chain."""

    def __init__(self, street: Street, stall: OpenStall, payer: DevAccount) -> None:
        self._chain, self._stall, self._payer = street.chain, stall, payer
        self._before = self._read()

    def check(self, calls: int) -> None:
        """Return when `calls` are settled, at exactly their price."""
        owed_atomic = calls * price_atomic(self._stall.stall.rail)
        deadline = time.monotonic() + PATIENCE_S
        while (moved := self._moved()) != (owed_atomic, owed_atomic):
            assert moved[0] <= owed_atomic, f"the payee got {moved[0]}, and {calls} calls cost {owed_atomic}"
            assert time.monotonic() < deadline, f"moved (got, paid) {moved}, and {calls} calls cost {owed_atomic}"
            time.sleep(_POLL_S)

    def _read(self) -> tuple[int, int]:
        balance_of, token = self._chain.balance_of, self._stall.token
        return balance_of(self._stall.pay_to, token), balance_of(self._payer.address, token)

    def _moved(self) -> tuple[int, int]:
        got, paid = self._read()
        return got - self._before[0], self._before[1] - paid


def meet(street: Street, buyers: Buyers, client: Client, stall: OpenStall, *, approved: bool = True) -> None:
    """Let `client` buy a whole answer and a stream, with a new account that has `approved` Permit2 where it must.

    Raises `AssertionError` for the first thing that is not right.
    """
    payer = street.payer(stall.stall.rail, approved=approved)
    books = _Books(street, stall, payer)
    purse = buyers.open(client, stall, payer)
    _check(street, purse.buy(chat(), None), payer, stream=False)
    books.check(calls=1)
    if stall.stall.server.is_ours:
        _buy_while_it_is_made(street, purse, payer)
    else:
        _check(street, purse.buy(chat(stream=True), None), payer, stream=True)
    books.check(calls=2)


def check_unpaid(street: Street, stall: OpenStall) -> None:
    """An unpaid call gets a 402 that all three readers understand, and nothing for free."""
    answer = httpx.post(stall.url + CHAT, json=chat(), trust_env=False)
    assert answer.status_code == 402, f"unpaid: {answer.status_code} {answer.text[:200]}"
    header = answer.headers["PAYMENT-REQUIRED"]
    ours = decode_payment_required(header).accepts
    python = decode_payment_required_header(header)
    assert isinstance(python, PaymentRequired)
    typescript = street.node.call("readOffers", header=header)["accepts"]
    wanted = (str(offered_atomic(stall.stall.rail)), stall.token, stall.pay_to)
    assert wanted in [(offer.amount, offer.asset, offer.pay_to) for offer in ours]
    assert wanted in [(offer.amount, offer.asset, offer.pay_to) for offer in python.accepts]
    assert wanted in [(offer["amount"], offer["asset"], offer["payTo"]) for offer in typescript]


def streams_live(street: Street, buyers: Buyers, stall: OpenStall) -> bool:
    """Tell whether a paid stream comes as it is made, or only when it is over and settled."""
    hold = street.new_name("hold")
    release = f"{street.models_url}/test/release/{hold}"
    payer = street.payer(stall.stall.rail)
    purse = buyers.open(Client.OURS, stall, payer)
    with ThreadPoolExecutor(1) as thread:
        buying = thread.submit(purse.buy, chat(stream=True, hold=hold), release)
        live = bool(wait([buying], _HELD_BACK_S).done)
        if not live:
            httpx.post(release, trust_env=False)
        _check(street, buying.result(), payer, stream=True)
    return live


def _buy_while_it_is_made(street: Street, purse: Purse, payer: DevAccount) -> None:
    """Buy a stream whose model goes on only when the client has the first piece; a held back stream would never end."""
    hold = street.new_name("hold")
    bought = purse.buy(chat(stream=True, hold=hold), f"{street.models_url}/test/release/{hold}")
    _check(street, bought, payer, stream=True)
    assert bought.flowed


def _check(street: Street, bought: Bought, payer: DevAccount, *, stream: bool) -> None:
    assert bought.status == 200, f"{bought.status}: {bought.body[:500]} {_readable(bought.told)}"
    assert is_right(bought.body, stream=stream), f"not what was bought: {bought.body[:500]}"
    receipt = bought.receipt
    assert receipt is not None, "no receipt"
    assert (receipt.success, receipt.payer) == (True, payer.address), f"receipt: {_readable(bought.told)}"
    if receipt.transaction:
        settled = street.chain.rpc("eth_getTransactionReceipt", receipt.transaction)
        assert settled["status"] == "0x1", f"the receipt names a transaction that failed: {receipt.transaction}"


def _readable(header: str) -> str:
    return base64.b64decode(header).decode()
