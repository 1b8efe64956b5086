"""Probing real HTTP servers, friendly and not."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from buyer.cli import commands
from buyer.probe import probe_base, probe_url
from contracts.errors import FareboxError, MalformedMessage, NotForSale, SellerUnreachable
from contracts.headers import PAYMENT_REQUIRED, encode_header
from contracts.offers import requirements
from contracts.wire import PaymentRequired
from tests.buyer.parts import Shop, closed_port_url, hanging_up, offer_of, serving

HEADER = {PAYMENT_REQUIRED: encode_header(PaymentRequired(x402_version=2, accepts=[requirements(offer_of())]))}


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_a_seller_is_asked_at_its_inference_route(path: str) -> None:
    with serving(Shop([offer_of()])) as url:
        probe = probe_url(url + path, "m")
    assert (probe.method, probe.url) == ("POST", f"{url}/v1/chat/completions")
    assert probe.asked.options[0].terms is not None
    assert probe.asked.options[0].terms.offer == offer_of()


def test_another_path_is_asked_for_as_it_is() -> None:
    with serving(Shop([offer_of()])) as url:
        probe = probe_url(f"{url}/report?year=2026")
    assert (probe.method, probe.url) == ("GET", f"{url}/report?year=2026")


def test_a_seller_of_embeddings_alone_is_found() -> None:
    with serving(Shop([offer_of()], routes=("/v1/embeddings",))) as url:
        assert probe_base(url, "m").url == f"{url}/v1/embeddings"


def test_a_seller_without_any_inference_route_is_told_apart_and_its_words_are_shown() -> None:
    with serving(Shop([offer_of()], routes=())) as url, pytest.raises(NotForSale, match="no such model") as refused:
        probe_base(url)
    assert "--model" in refused.value.advice
    assert refused.value.exit_code == 5


def test_a_free_endpoint_is_not_for_sale() -> None:
    with serving(Shop([offer_of()], free=True)) as url, pytest.raises(NotForSale, match="free") as refused:
        probe_url(url)
    assert refused.value.exit_code == 5


def test_a_redirect_is_refused_and_shown_without_its_tricks() -> None:
    shop = Shop([offer_of()], redirect_to="https://evil.example/\u202e")
    with serving(shop) as url, pytest.raises(NotForSale, match=r"redirect to https://evil\.example/\?") as refused:
        probe_url(url)
    assert refused.value.exit_code == 5


@pytest.mark.parametrize("dead", ["closed", "hanging up"])
def test_a_dead_endpoint_is_unreachable(dead: str) -> None:
    if dead == "closed":
        with pytest.raises(SellerUnreachable, match="no connection") as refused:
            probe_url(closed_port_url())
    else:
        with hanging_up() as url, pytest.raises(SellerUnreachable, match="no answer") as refused:
            probe_url(url)
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (({}, b" " * 5_000_000), NotForSale),
        (({"content-encoding": "gzip"}, gzip.compress(bytes(20_000_000))), NotForSale),
        (({PAYMENT_REQUIRED: "A" * 40_000}, b""), FareboxError),
        (({PAYMENT_REQUIRED: "e30="}, b""), MalformedMessage),
        (({}, b'{"x402Version": 1, "accepts": [{}'), MalformedMessage),
    ],
)
def test_bombs_and_nonsense_are_named_errors(raw: tuple[dict[str, str], bytes], error: type[FareboxError]) -> None:
    with serving(Shop([offer_of()], raw_402=raw)) as url, pytest.raises(error):
        probe_url(url)


def test_terms_in_the_header_are_read_whatever_the_body_is() -> None:
    for body in (b" " * 5_000_000, b"\xff\xfe", gzip.compress(bytes(20_000_000))):
        with serving(Shop([offer_of()], raw_402=(HEADER, body))) as url:
            assert len(probe_url(url).asked.options) == 1


def test_no_word_of_an_offer_steers_the_terminal_of_whoever_probes() -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07"
    offers = [replace(offer_of(), scheme=f"one{hostile}"), replace(offer_of(), method=f"two{hostile}")]
    with serving(Shop(offers)) as url:
        shown = CliRunner().invoke(commands, ["probe", url, "--model", "m"]).stdout
    assert "one" in shown
    assert "two" in shown
    assert not {"\x1b", "\x07"} & set(shown)
