"""Endpoints: one spelling of a base URL, https beyond this machine."""

from __future__ import annotations

import pytest

from buyer.endpoint import normalise_endpoint, origin_of, parse_url
from contracts.errors import UsageError


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("https://seller.example", "https://seller.example"),
        ("https://seller.example/", "https://seller.example"),
        ("https://Seller.Example:443/v1", "https://seller.example"),
        ("https://seller.example/v1/", "https://seller.example"),
        ("https://seller.example/v1/chat/completions", "https://seller.example"),
        ("https://seller.example/v1/embeddings/", "https://seller.example"),
        ("https://seller.example/services/qwen/v1", "https://seller.example/services/qwen"),
        ("https://seller.example/services/qwen/chat/completions", "https://seller.example/services/qwen"),
        ("https://seller.example/dav1", "https://seller.example/dav1"),
        ("http://127.0.0.1:8402/v1", "http://127.0.0.1:8402"),
        ("http://[::1]:8402", "http://[::1]:8402"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_every_spelling_leads_to_one_base(given: str, base: str) -> None:
    assert normalise_endpoint(given) == base


@pytest.mark.parametrize(
    "given",
    [
        "seller.example",
        "ftp://seller.example",
        "https://",
        "https://user:secret@seller.example",
        "https://seller.example/#top",
        "https://seller.example/?key=1",
        "https://seller.example:0/",
        "https://seller.example:99999/",
        "https://seller.example/a b",
        "https://s\u0435ller.example/",
        "http://seller.example",
        "http://192.168.0.4:8402",
        "http://127.0.0.1.evil.example/",
    ],
)
def test_what_is_no_safe_base_url_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--endpoint"):
        normalise_endpoint(given)


def test_plain_http_beyond_this_machine_needs_to_be_said() -> None:
    assert normalise_endpoint("http://192.168.0.4:8402", allow_http=True) == "http://192.168.0.4:8402"
    with pytest.raises(UsageError) as refused:
        parse_url("http://192.168.0.4:8402/x", field="URL")
    assert "--allow-http" in refused.value.advice


def test_two_spellings_of_one_origin_are_equal_and_two_ports_are_not() -> None:
    assert origin_of("https://seller.example/a") == origin_of("https://SELLER.example:443/b?c")
    assert origin_of("https://seller.example/") != origin_of("http://seller.example/")
    assert origin_of("http://127.0.0.1:8402/") != origin_of("http://127.0.0.1:8403/")
