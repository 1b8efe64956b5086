"""Clients check whom they talk to, and share what that takes."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from buyer.http import async_transport, open_client, transport
from contracts.evm.rpc import Rpc
from contracts.tls import tls_context


def test_certificates_and_host_names_are_checked_against_the_known_authorities() -> None:
    context = tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(context.get_ca_certs()) > 50


@pytest.mark.parametrize(
    "make",
    [transport, async_transport, lambda: open_client(1.0), lambda: Rpc(["http://127.0.0.1:9"])],
)
def test_no_client_reads_the_authorities_anew(make: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = []

    def create(verify: object = True, **_: object) -> object:
        contexts.append(verify)
        return verify

    monkeypatch.setattr("httpx._transports.default.create_ssl_context", create)
    make()
    assert contexts == [tls_context()]
