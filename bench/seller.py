"""`seller`: an unpaid 402 and a paid request, in CPU of the server, against the bare app and the official SDK."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from bench.harness import Call, Case, Plan, Samples, Slice, measure
from bench.official import Reach, facilitator_stand_in
from bench.report import Report, Target, ratio_of, row
from bench.seller_http import compare
from bench.stacks import Chain, Request, Stack, StackProcess
from bench.tree import cores, on_core
from bench.verify import RAW, raw_recover
from bench.workload import an_offer, sign_payments
from contracts.evm.devnet import Devnet
from contracts.schemes.exact_eip3009 import transfer_digest
from contracts.signature import SigningKey

__all__ = ["run"]

_CALLERS = 64
_PAYEE, _PAYERS = 1, slice(2, 10)
_FUNDS_ATOMIC = 10**15

_RAW_APP = Stack("raw ASGI")
_RAW_FAREBOX = Stack("raw ASGI", "Farebox")
_FASTAPI = Stack("FastAPI")
_FASTAPI_FAREBOX = Stack("FastAPI", "Farebox")
_SDK = Stack("FastAPI", "official SDK", Reach.LOOPBACK)
_SDK_NO_SOCKET = Stack("FastAPI", "official SDK", Reach.NO_SOCKET)
_SDK_CALL = Stack("FastAPI", "official SDK", Reach.CALL)

_UNPAID, _PAID, _PAID_TOGETHER = Request(paid=False), Request(paid=True), Request(paid=True, callers=_CALLERS)

BARE = "bare raw app"
UNPAID = "Farebox on raw app: 402"
PAID = "Farebox on raw app: paid, one by one"
PAID_TOGETHER = f"Farebox on raw app: paid, {_CALLERS} at once"
BARE_FASTAPI = "bare FastAPI app"
UNPAID_FASTAPI = "Farebox on FastAPI: 402"
PAID_FASTAPI = f"Farebox on FastAPI: paid, {_CALLERS} at once"
SDK_UNPAID = "official SDK on FastAPI: 402"
SDK_PAID = f"official SDK on FastAPI: paid, {_CALLERS} at once"
SDK_PAID_NO_SOCKET = "  the same, facilitator without socket"
SDK_PAID_CALL = "  the same, facilitator without HTTP"

_ROWS: list[tuple[str, Stack, Request, str | None]] = [
    (BARE, _RAW_APP, _UNPAID, None),
    (UNPAID, _RAW_FAREBOX, _UNPAID, BARE),
    (PAID, _RAW_FAREBOX, _PAID, RAW),
    (PAID_TOGETHER, _RAW_FAREBOX, _PAID_TOGETHER, RAW),
    (BARE_FASTAPI, _FASTAPI, _UNPAID, None),
    (UNPAID_FASTAPI, _FASTAPI_FAREBOX, _UNPAID, BARE_FASTAPI),
    (PAID_FASTAPI, _FASTAPI_FAREBOX, _PAID_TOGETHER, BARE_FASTAPI),
    (SDK_UNPAID, _SDK, _UNPAID, UNPAID_FASTAPI),
    (SDK_PAID, _SDK, _PAID_TOGETHER, PAID_FASTAPI),
    (SDK_PAID_NO_SOCKET, _SDK_NO_SOCKET, _PAID_TOGETHER, PAID_FASTAPI),
    (SDK_PAID_CALL, _SDK_CALL, _PAID_TOGETHER, PAID_FASTAPI),
]
# They take seconds to start, and are left out of a smoke test.
_SLOW = (_SDK_NO_SOCKET, _SDK_CALL)


def run(plan: Plan) -> Report:
    """Measure the seller's side of a request."""
    core, others_core = cores()
    rows = [each for each in _ROWS if not (plan.quick and each[1] in _SLOW)]
    with ExitStack() as running:
        with on_core(others_core):
            devnet = running.enter_context(Devnet())
            chain = _chain(devnet, running.enter_context(facilitator_stand_in(devnet.network)))
        processes = {
            stack: running.enter_context(StackProcess(stack, chain))
            for stack in dict.fromkeys(stack for _, stack, _, _ in rows)
        }
        cases: list[Case] = [_curve()]
        cases += [_Requests(name, processes[stack], request) for name, stack, request, _ in rows]
        samples = measure(cases, plan)
        over_http = compare(plan, core, others_core, devnet, chain)
    return Report(
        bench="seller",
        title="one request to a priced route, ASGI without sockets, then over HTTP; SQLite, reservations synced",
        rounds=plan.rounds,
        rows=[row(RAW, samples), *(row(name, samples, peer, rate=True) for name, _, _, peer in rows), *over_http.rows],
        targets=[*_targets(samples), *over_http.targets],
        notes=[
            "Without sockets: settle: async.",
            "Stand-in: the SDK's facilitator verifies and settles nothing and answers at once, by loopback HTTP from",
            "another process whose CPU is not counted, by the SDK's HTTP client without a socket, or by a Python call.",
            "Not in these figures: settling on chain, which `farebox settle` and a real facilitator do elsewhere.",
            *over_http.notes,
        ],
    )


def _targets(samples: dict[str, Samples]) -> list[Target]:
    recover = samples[RAW].cpu_us
    middleware = [paid - bare for paid, bare in zip(samples[PAID_TOGETHER].cpu_us, samples[BARE].cpu_us, strict=True)]
    return [
        Target(
            f"paid request, CPU of the middleware over the bare app, {_CALLERS} at once, against raw recover",
            "at most", 2.5, ratio_of(middleware, recover),
        ),
        Target(
            f"paid requests/s without sockets, {_CALLERS} at once, times those of the official SDK on the same app",
            "at least", 20, ratio_of(samples[SDK_PAID].wall_us, samples[PAID_FASTAPI].wall_us),
        ),
        Target(
            "402 answers/s without sockets, times those of the official SDK on the same app",
            "at least", 5, ratio_of(samples[SDK_UNPAID].wall_us, samples[UNPAID_FASTAPI].wall_us),
        ),
    ]  # fmt: skip


class _Requests:
    """One kind of request to one running stack."""

    def __init__(self, name: str, process: StackProcess, request: Request) -> None:
        self.name = name
        self._process, self._request = process, request

    def run(self, count: int) -> Slice:
        """Send at least one request of every caller."""
        return self._process.run(self._request, max(count, self._request.callers))


def _curve() -> Call:
    offer = an_offer()
    payments = sign_payments(offer, [SigningKey(b"\x01" * 32)], 64)
    digests: Sequence[bytes] = [transfer_digest(payment.authorization, offer.domain) for payment in payments]
    return Call(RAW, raw_recover(digests, [payment.signature for payment in payments]))


def _chain(devnet: Devnet, facilitator_url: str) -> Chain:
    """Return the chain, with wallets that no run empties."""
    payers = devnet.accounts[_PAYERS]
    for payer in payers:
        devnet.mint(payer.address, _FUNDS_ATOMIC)
    return Chain(
        rpc_url=devnet.rpc_url,
        network=devnet.network,
        token=devnet.token,
        payee=devnet.accounts[_PAYEE].address,
        payer_secrets=tuple(payer.key for payer in payers),
        facilitator_url=facilitator_url,
    )
