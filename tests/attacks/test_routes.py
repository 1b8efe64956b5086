"""Other spellings of a path, other methods, other hosts: what reaches a priced handler has paid for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from contracts.evm.devnet import Devnet
from seller import PaymentMiddleware
from tests.attacks.parts import GOODS, attacked
from tests.attacks.wire import Wire, behind_proxy
from tests.seller.shop import BODY, CHAT, error_of
from tests.seller.test_streams import listening

METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "post", "Get")


def forms(path: str) -> Iterator[str]:
    """Yield spellings of a path that some router somewhere takes for it."""
    yield path
    yield from (
        path + end for end in ("/", "//", "/.", "/..", "%2F", ";x=1", ";", "%00", "%20", "?", "?a=/x", "#x", ".")
    )
    yield from (start + path for start in ("/", "/.", "/..", "/x/..", "/%2e", "/%2e%2e", "//host", "/%2F", "\\"))
    yield from (path.upper(), path.title(), path.replace("/", "//"), path.replace("/", "/./"))
    yield path.replace("/", "%2F")
    yield path[0] + path[1:].replace("/", "%2F", 1)
    yield path[0] + path[1:].replace("/", "%2f")
    yield path[0] + path[1:].replace("/", "%5C")
    yield path[0] + path[1:].replace("/", "\\")
    for place in range(1, len(path)):
        letter = f"%{ord(path[place]):02x}"
        yield path[:place] + letter + path[place + 1 :]
    yield path[:2] + "%25" + f"{ord(path[2]):02x}" + path[3:]
    yield path[:2] + "%u00" + f"{ord(path[2]):02x}" + path[3:]
    yield path[:2] + "%c0%ae" + path[2:]
    yield path[:2] + "\u00ad".encode().decode("latin-1") + path[2:]
    yield "http://shop" + path
    yield "http://other" + path
    yield "HTTP://shop:80" + path
    yield "*"


async def test_no_form_of_a_priced_path_reaches_its_handler_unpaid(chain: Devnet, tmp_path: Path) -> None:
    """S13, S15, I19: the router itself is asked which forms reach the handler, then the gate is in front of it."""
    reached: list[tuple[str, str]] = []

    async def handler(request: Request) -> Response:
        reached.append((request.method, str(request.scope.get("raw_path"))))
        return PlainTextResponse(GOODS)

    routes = [Route(CHAT, handler, methods=["POST"]), Route("/paid", handler, methods=["GET"])]
    async with attacked(chain, tmp_path) as (shop, till):
        async with listening(Starlette(routes=routes)) as bare:
            open_router = Wire(bare, _Blind())  # type: ignore[arg-type]
            for form, method in itertools.product(forms(CHAT), ("POST",)):
                await open_router.send(method, form)
            for form, method in itertools.product(forms("/paid"), ("GET", "HEAD")):
                await open_router.send(method, form)
        assert len(reached) > 30, "the forms are not worth much"
        reached.clear()
        gate = PaymentMiddleware(Starlette(routes=routes), seller=shop.seller)
        async with listening(gate) as url:
            wire = Wire(url, till)
            for path in (CHAT, "/paid"):
                for form in forms(path):
                    for method in ("GET", "POST", "HEAD"):
                        await wire.send(method, form)
        assert reached == []
        assert set(till.statuses) <= {400, 402, 404, 405, 200}
        assert till.statuses[402] > 0


class _Blind:
    """A till that looks away."""

    def see(self, *_: object) -> None:
        """See nothing."""


async def test_no_form_of_a_priced_path_reaches_the_model_server_unpaid(chain: Devnet, tmp_path: Path) -> None:
    """S13, S15, I19: through the reverse proxy, every form with every method."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        for form, method in itertools.product(forms("/paid"), METHODS):
            status, _, body = await wire.send(method, form)
            assert status in (0, 204, 400, 402, 404, 405), (method, form)
            assert GOODS not in body
        assert shop.app.runs == 0


async def test_a_gate_under_a_mount_denies_instead_of_giving_away(chain: Devnet, tmp_path: Path) -> None:
    """S13: with a prefix in front, the listed paths are other paths; they are refused, not free."""
    async with attacked(chain, tmp_path) as (shop, till):
        mounted = Starlette(routes=[Mount("/api", app=shop.middleware)])
        async with listening(mounted) as url:
            wire = Wire(url, till)
            for target in ("/api" + CHAT, "/api/api" + CHAT, "/api/paid", "/api//paid"):
                for method in ("GET", "POST"):
                    status, _, _ = await wire.send(method, target)
                    assert status in (402, 404)
        assert shop.app.runs == 0


@pytest.mark.parametrize(
    "header",
    [
        "X-HTTP-Method-Override",
        "X_HTTP_Method_Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
    ],
)
async def test_override_headers_change_nothing_and_go_no_further(chain: Devnet, tmp_path: Path, header: str) -> None:
    """S15: neither the gate nor the model server behind it is told another method or path."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        for value in ("GET", "HEAD", "OPTIONS", "/v1/models", "/free"):
            status, _, _ = await wire.send("POST", CHAT, [(header, value)])
            assert status == 402
        assert shop.app.runs == 0
        paid = [("PAYMENT-SIGNATURE", shop.payment()), (header, "DELETE")]
        assert (await wire.send("POST", CHAT, paid))[0] == 200
        assert header.lower().encode() not in shop.app.seen[0]["headers"]
        assert shop.app.seen[0]["method"] == "POST"


async def test_a_paid_head_request_takes_no_money(chain: Devnet, tmp_path: Path) -> None:
    """S15: HEAD is 402 without a handler; the payment stays good for the GET that yields something."""
    async with attacked(chain, tmp_path) as (shop, _):
        headers = {"PAYMENT-SIGNATURE": shop.payment(path="/paid")}
        assert (await shop.client.head("/paid", headers=headers)).status_code == 402
        assert shop.app.runs == 0
        assert (await shop.client.get("/paid", headers=headers)).status_code == 200


async def test_a_browser_preflight_runs_nothing_and_opens_nothing(chain: Devnet, tmp_path: Path) -> None:
    """S15: CORS preflight is answered here, never by the handler, and allows no foreign page."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        for target in (CHAT, "/paid", "/v1/models", "/nothing"):
            asked = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")]
            status, headers, _ = await wire.send("OPTIONS", target, asked, b"")
            assert status in (204, 404, 405)
            assert "access-control-allow-origin" not in headers
        assert shop.app.runs == 0


@pytest.mark.parametrize("host", ["evil.example", "shop@evil.example", "", "a" * 300, "127.0.0.1:1/../"])
async def test_a_forged_host_changes_no_decision_and_is_named_nowhere(chain: Devnet, tmp_path: Path, host: str) -> None:
    """S14: the 402 names the configured address, whatever Host, X-Forwarded-Host or Forwarded say."""
    async with behind_proxy(chain, tmp_path, public_url="https://shop.example") as (shop, wire):
        forged = [
            ("Host", host),
            ("X-Forwarded-Host", host),
            ("X-Forwarded-Proto", "ftp"),
            ("Forwarded", f"host={host}"),
        ]
        status, _, body = await wire.send("POST", CHAT, forged)
        assert status in (400, 402)
        if host:
            assert host.encode() not in body
        if status == 402:
            assert b"https://shop.example/v1/chat/completions" in body
        assert shop.app.runs == 0


async def test_several_hosts_or_none_run_nothing(chain: Devnet, tmp_path: Path) -> None:
    """S14."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        for head in (b"", b"Host: a\r\nHost: b\r\n", b"Host : a\r\n"):
            raw = b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + head + b"Connection: close\r\nContent-Length: 0\r\n\r\n"
            status, _, _ = await wire.send("POST", CHAT, raw=raw)
            assert status in (0, 400, 402)
        assert shop.app.runs == 0


async def test_a_query_string_is_no_way_round_the_price_of_a_model(chain: Devnet, tmp_path: Path) -> None:
    """S13, S3: the model in the query does not set the price, and the body's does."""
    async with attacked(chain, tmp_path) as (shop, _):
        header = shop.payment()
        answer = await shop.client.post(
            CHAT + "?model=m", content=BODY.replace(b'"m"', b'"big-model"'), headers={"PAYMENT-SIGNATURE": header}
        )
        assert error_of(answer)["code"] == "no_matching_offer"
