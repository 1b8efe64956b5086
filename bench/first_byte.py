"""`first_byte`: how much later a paid stream begins than the same stream from the bare model server.

Two seconds of server-sent events under `settle: auto` for a payer the seller knows, through the real `farebox sell`, in
pairs with the bare server: A B A B. Wall time from sending the request to the first byte of the body.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.harness import Plan, Samples, Slice, spread
from bench.report import Report, Row, Target
from bench.workload import sign_payments
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_SIGNATURE, decode_payment_required
from contracts.offers import Offer, offer_from_wire
from contracts.signature import SigningKey
from gateway.demo.models import ModelForSale
from gateway.demo.ports import free_ports
from gateway.demo.processes import Crew, farebox_command, wait_until
from gateway.demo.shop import seller_yaml

__all__ = ["run"]

BARE = "bare model server: first byte"
THROUGH = "farebox sell, auto, known payer: first byte"
LIMIT_MS = 100
STREAM_S, QUICK_STREAM_S = 2.0, 0.1
_MODEL = "demo-model"
_CHAT = "/v1/chat/completions"
_FUNDS_ATOMIC = 10**9
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Stream:
    """What one stream took, in seconds of wall time."""

    first_byte_s: float
    whole_s: float


def run(plan: Plan) -> Report:
    """Measure pairs of streams."""
    samples = {BARE: Samples(), THROUGH: Samples()}
    later_ms: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Devnet() as devnet, _street(Path(folder), devnet) as street:
        street.bare(0)
        frames = street.frames
        delay_ms = round((QUICK_STREAM_S if plan.quick else STREAM_S) * 1000 / max(1, frames))
        for number in range(plan.rounds + 1):
            pair = street.bare(delay_ms), street.through(delay_ms)
            if number == 0:
                continue  # both sides open connections and read caches once
            for name, stream in zip((BARE, THROUGH), pair, strict=True):
                samples[name].slices.append(Slice(1, 0.0, stream.whole_s, (stream.first_byte_s * 1e6,)))
            later_ms.append((pair[1].first_byte_s - pair[0].first_byte_s) * 1000)
        street.check_books(plan.rounds + 2)
    lasted_s = spread([value / 1e6 for value in samples[BARE].wall_us]).median
    return Report(
        bench="first_byte",
        title=f"a stream of {lasted_s:.1f} s in {frames} pieces, wall time",
        rounds=plan.rounds,
        rows=[
            Row(name, None, p50_us=each.latency_us(50), p99_us=each.latency_us(99)) for name, each in samples.items()
        ],
        targets=[
            Target(
                "first byte of a paid stream after that of the bare server, median of pairs",
                "at most", LIMIT_MS, spread(later_ms), unit="ms",
            )
        ],
        notes=["The model server is a stand-in that waits before each piece; sockets, store and chain are real."],
    )  # fmt: skip


class _Street:
    """A model server, a seller in front of it, and a payer with signed payments in stock."""

    def __init__(self, devnet: Devnet, model_url: str, seller_url: str, admin_url: str) -> None:
        self._devnet = devnet
        self._urls = model_url, seller_url
        self._admin_url = admin_url
        self._client = httpx.Client(timeout=_TIMEOUT_S, trust_env=False)
        self.key = SigningKey(devnet.accounts[3].key)
        self._offer: Offer | None = None
        self.frames = 0

    def bare(self, delay_ms: int) -> _Stream:
        """Stream once from the model server."""
        return self._stream(self._urls[0], {}, delay_ms)

    def through(self, delay_ms: int) -> _Stream:
        """Stream once through the seller, for a new payment."""
        (payment,) = sign_payments(self.offer, [self.key], 1)
        return self._stream(self._urls[1], {PAYMENT_SIGNATURE: payment.header}, delay_ms)

    @property
    def offer(self) -> Offer:
        """What the seller asks for."""
        if self._offer is None:
            asked = self._client.post(self._urls[1] + _CHAT, json=_call(0))
            self._offer = offer_from_wire(decode_payment_required(asked.headers["PAYMENT-REQUIRED"]).accepts[0])
        return self._offer

    def become_known(self) -> None:
        """Pay once, so that the seller gives credit from now on."""
        self.through(0)

    def is_known(self) -> bool:
        """Tell whether a payment was settled."""
        return int(httpx.get(f"{self._admin_url}/status").json()["earned_atomic"]) > 0

    def check_books(self, calls: int) -> None:
        """Make sure that every stream was paid for."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while httpx.get(f"{self._admin_url}/status").json()["unsettled_atomic"]:
            assert time.monotonic() < deadline_s, "not settled"
            time.sleep(0.05)
        earned = self._devnet.balance_of(self._devnet.accounts[4].address)
        assert earned == calls * self.offer.amount_atomic, f"{earned} atomic units for {calls} streams"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _stream(self, url: str, headers: dict[str, str], delay_ms: int) -> _Stream:
        started = time.perf_counter()
        first_s = 0.0
        body = b""
        with self._client.stream("POST", url + _CHAT, json=_call(delay_ms), headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            for chunk in answer.iter_raw():
                first_s = first_s or time.perf_counter() - started
                body += chunk
        self.frames = body.count(b"\n\n")
        return _Stream(first_s, time.perf_counter() - started)


def _call(delay_ms: int) -> dict[str, object]:
    messages = [{"role": "user", "content": "count slowly, and tell how many numbers there are in the end"}]
    return {"model": _MODEL, "messages": messages, "stream": True, "metadata": {"x-test-delay-ms": str(delay_ms)}}


@contextmanager
def _street(folder: Path, devnet: Devnet) -> Iterator[_Street]:
    model_port, seller_port, admin_port = free_ports(3)
    model_url, seller_url, admin_url = (f"http://127.0.0.1:{port}" for port in (model_port, seller_port, admin_port))
    key_file = folder / "settler.key"
    key_file.touch(0o600)
    key_file.write_text(devnet.accounts[2].key.hex())
    (folder / "seller.yaml").write_text(
        seller_yaml(
            ModelForSale(model_url, _MODEL, "stand-in"),
            "0.001",
            listen=f"127.0.0.1:{seller_port}",
            network=devnet.network,
            rpc=devnet.rpc_url,
            token=devnet.token,
            pay_to=devnet.accounts[4].address,
        )
    )
    with Crew(folder, {}) as crew:
        server = [sys.executable, "-m", "gateway.demo.model_server", "--port", str(model_port)]
        crew.wait_ready(crew.start("model-server", server), f"{model_url}/healthz")
        command = farebox_command("sell", "--config", "seller.yaml", "--admin-listen", f"127.0.0.1:{admin_port}")
        seller = crew.start("sell", command)
        crew.wait_ready(seller, f"{admin_url}/readyz")
        street = _Street(devnet, model_url, seller_url, admin_url)
        try:
            devnet.mint(address_text(street.key.address), _FUNDS_ATOMIC)
            street.become_known()
            wait_until(street.is_known, seller, "the first payment was not settled")
            yield street
        finally:
            street.close()
