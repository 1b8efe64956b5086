"""Goal: nothing a stranger publishes makes us connect where we should not, hold more than the cap, or wait for long.

Method: every wrapped form of a private address by example, and a web of strangers on loopback that misbehaves.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import resource
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from registry.fetch import Fetcher, Unfetched
from registry.guard import NetworkPolicy, Refused, forbidden
from registry.limits import DOCUMENT_BYTES_MAX, FETCH_HOST_STRIKES_MAX
from registry.retrieve import Gateways, retrieve, retrieve_well_known
from tests.registry.strangers import Request, Web, strangers

_PRIVATE = (
    "127.0.0.1 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.100.100.200 0.0.0.0 255.255.255.255 224.0.0.1 "
    "192.0.2.1 198.18.0.1 192.88.99.1 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 fec0::1 ff02::1 "
    "ff0e::1 2001:db8::1 3fff::1 5f00::1 100::1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::10.0.0.1 "
    "64:ff9b::a9fe:a9fe 64:ff9b:1::10.0.0.1 2002:a00:1:: 2002:7f00:1::1 2001:0:7f00:1::1 "
    "2600::5efe:10.0.0.1 2600::200:5efe:7f00:1 example.org 1.2.3"
)


@pytest.mark.parametrize("address", _PRIVATE.split())
def test_an_address_that_is_not_of_the_open_internet_is_refused_in_every_disguise(address: str) -> None:
    assert forbidden(address)
    with pytest.raises(Refused, match="address_refused"):
        NetworkPolicy().check_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::1"])
def test_an_address_of_the_open_internet_is_allowed(address: str) -> None:
    assert forbidden(address) is None


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://seller.example/", "scheme_refused"),
        ("ftp://seller.example/", "scheme_refused"),
        ("https://seller.example:22/", "port_refused"),
        ("https://user:secret@seller.example/", "url_malformed"),
        ("https:///nohost", "url_malformed"),
        ("https://seller.example\\@10.0.0.1/", "url_malformed"),
        ("https://seller.example/\u202e", "url_malformed"),
        ("https://seller.example:99999/", "url_malformed"),
        ("https://seller.example/" + "a" * 3000, "url_malformed"),
    ],
)
def test_a_url_that_is_no_plain_https_is_refused_before_its_name_is_looked_up(url: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        NetworkPolicy().check_url(url)
    assert refused.value.code == code


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[64:ff9b::7f00:1]", "localhost", "2130706433", "0x7f000001"])
async def test_no_connection_is_opened_to_this_machine_however_it_is_spelled(host: str) -> None:
    accepted: list[object] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Fetcher(NetworkPolicy(ports=frozenset({port}))) as fetcher:
            with pytest.raises(Unfetched) as refused:
                await fetcher.get(f"https://{host}:{port}/", body_max=1000)
    assert refused.value.code in ("address_refused", "name_unknown")
    assert accepted == []


async def test_a_name_is_looked_up_once_and_one_bad_address_among_good_ones_is_enough() -> None:
    lookups: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        lookups.append(host)
        return ["1.1.1.1", "127.0.0.1"] if len(lookups) == 1 else ["127.0.0.1"]

    async with Fetcher(resolver=rebinding) as fetcher:
        with pytest.raises(Unfetched, match="address_refused"):
            await fetcher.get("https://rebinding.example/", body_max=1000)
    assert lookups == ["rebinding.example"]


async def test_the_connection_goes_to_the_checked_address_and_the_name_stays_in_the_request() -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        url = web.page("seller.example", "/card.json", b"{}")
        assert (await fetcher.get(url, body_max=1000)).body == b"{}"
        assert [request.host for request in web.asked] == ["seller.example"]
        assert web.resolved == ["seller.example"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate for seller.example that nobody else trusts, its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=seller.example"
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    names = ["-addext", "subjectAltName=DNS:seller.example"]
    subprocess.run([*make.split(), *files, *names], check=True, capture_output=True)
    return tmp_path / "certificate"


async def test_tls_still_proves_the_name_though_the_connection_goes_to_an_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate, certificate.with_name("key"))
    client_side = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr("registry.fetch.httpx.create_ssl_context", lambda **_: client_side)
    web = Web()
    web.page("seller.example", "/card", b"{}")
    async with await asyncio.start_server(web.serve, "127.0.0.1", 0, ssl=server_side) as server:
        port = server.sockets[0].getsockname()[1]
        async with web.fetcher() as fetcher:
            assert (await fetcher.get(f"https://seller.example:{port}/card", body_max=10)).body == b"{}"
            with pytest.raises(Unfetched, match="unreachable"):
                await fetcher.get(f"https://other.example:{port}/card", body_max=10)
    assert [request.host for request in web.asked] == ["seller.example"]


async def test_a_redirect_into_this_machine_is_not_followed() -> None:
    """The first hop is allowed by name; what it points to is refused by address."""
    async with strangers() as web:
        web.page("inside", "/secret", b"secret")

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        class Outer(NetworkPolicy):
            """Everything is the open internet except the host called inside."""

            def check_url(self, url: str) -> None:
                if "inside" in url:
                    NetworkPolicy().check_address("127.0.0.1")

        async with Fetcher(Outer(allow_private=True), resolver=resolver) as fetcher:
            url = web.page("seller.example", "/", b"", 302, location=web.url("inside", "/secret"))
            with pytest.raises(Unfetched, match="address_refused"):
                await fetcher.get(url, body_max=1000)
        assert [request.host for request in web.asked] == ["seller.example"]


async def test_redirects_are_followed_three_times_and_none_for_the_proof_of_a_domain() -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        web.page("a", "/4", b"end")
        for hop in range(4):
            web.page("a", f"/{hop}", b"", 307, location=f"/{hop + 1}")
        assert (await fetcher.get(web.url("a", "/1"), body_max=10)).body == b"end"
        with pytest.raises(Unfetched, match="too_many_redirects"):
            await fetcher.get(web.url("a", "/0"), body_max=10)
        web.page("a", "/.well-known/agent-registration.json", b"", 302, location="/4")
        proof = await retrieve_well_known(web.url("a", ""), fetcher)
        assert (proof.data, proof.error) == (None, "too_many_redirects")


async def test_no_cookie_credential_or_proxy_of_ours_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with strangers() as web, web.fetcher() as fetcher:
        web.page("a", "/1", b"", 302, location="/2", set_cookie="session=1")
        web.page("a", "/2", b"ok")
        await fetcher.get(web.url("a", "/1"), body_max=10)
        assert len(web.asked) == 2
        for request in web.asked:
            assert set(request.headers) == {"host", "user-agent", "accept-encoding", "accept"}


async def test_sixty_megabytes_are_given_up_at_the_cap_and_not_held_in_memory() -> None:
    sent = 0

    async def flood(request: Request) -> None:
        nonlocal sent
        request.writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 62914560\r\n\r\n")
        for _ in range(60):
            request.writer.write(b"x" * 1_048_576)
            await request.writer.drain()
            sent += 1

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with strangers() as web, web.fetcher() as fetcher:
        web.pages["a/flood"] = flood
        with pytest.raises(Unfetched, match="too_large"):
            await fetcher.get(web.url("a", "/flood"), body_max=DOCUMENT_BYTES_MAX)
    assert sent < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 32 * 1024


async def test_a_server_that_drips_is_left_at_the_deadline() -> None:
    async def drip(request: Request) -> None:
        request.writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 1000\r\n\r\n")
        while not request.writer.is_closing():
            request.writer.write(b"x")
            await request.writer.drain()
            await asyncio.sleep(0.02)

    async with strangers() as web, web.fetcher() as fetcher:
        web.pages["a/drip"] = drip
        with pytest.raises(Unfetched, match="timeout"):
            await fetcher.get(web.url("a", "/drip"), body_max=1000, timeout_s=0.3)


async def test_a_compressed_answer_nobody_asked_for_is_refused() -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        url = web.page("a", "/gzip", b"\x1f\x8b", content_encoding="gzip")
        with pytest.raises(Unfetched, match="encoding_refused"):
            await fetcher.get(url, body_max=1000)


async def test_one_slow_host_holds_up_only_its_own_files() -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        release = asyncio.Event()

        async def hold(request: Request) -> None:
            await release.wait()
            await request.answer()

        web.pages["slow/"] = hold
        slow = [asyncio.create_task(fetcher.get(web.url("slow"), body_max=10)) for _ in range(40)]
        await asyncio.sleep(0)
        assert (await fetcher.get(web.page("quick", "/", b"ok"), body_max=10)).body == b"ok"
        release.set()
        assert {answer.status for answer in await asyncio.gather(*slow)} == {200}


async def test_a_host_without_answers_is_left_alone_for_the_rest_of_a_run_but_a_gateway_is_not() -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        codes = {}
        for is_gateway in (True, False):
            failed = []
            for _ in range(FETCH_HOST_STRIKES_MAX + 1):
                with pytest.raises(Unfetched) as refused:
                    await fetcher.get("http://dead:9/", body_max=10, is_gateway=is_gateway)
                failed.append(refused.value.code)
            codes[is_gateway] = failed
    assert codes[True] == ["unreachable"] * (FETCH_HOST_STRIKES_MAX + 1)
    assert codes[False] == ["unreachable"] * FETCH_HOST_STRIKES_MAX + ["host_down"]


async def test_an_unchanged_file_is_not_sent_again() -> None:
    async with strangers() as web, web.fetcher() as fetcher:

        async def tagged(request: Request) -> None:
            known = request.headers.get("if-none-match") == '"v1"'
            await request.answer(304 if known else 200, b"" if known else b"{}", etag='"v1"')

        web.pages["a/card"] = tagged
        first = await retrieve(web.url("a", "/card"), fetcher, Gateways())
        assert (first.data, first.etag) == (b"{}", '"v1"')
        assert (await retrieve(web.url("a", "/card"), fetcher, Gateways(), etag=first.etag)).is_unchanged


async def test_a_lying_ipfs_gateway_is_caught_by_the_hash_in_the_id() -> None:
    content = b'{"name": "true"}'
    cid = "b" + base64.b32encode(b"\x01\x55\x12\x20" + hashlib.sha256(content).digest()).decode().lower().rstrip("=")
    async with strangers() as web, web.fetcher() as fetcher:
        gateways = Gateways(ipfs=web.url("gateway", ""))
        web.page("gateway", f"/ipfs/{cid}", content)
        assert (await retrieve(f"ipfs://{cid}", fetcher, gateways)).data == content
        web.page("gateway", f"/ipfs/{cid}", b'{"name": "false"}')
        assert (await retrieve(f"ipfs://{cid}", fetcher, gateways)).error == "content_mismatch"
        web.page("gateway", f"/ipfs/{cid}?format=raw", b"", 404)
        assert (await retrieve(f"ipfs://{cid}", fetcher, gateways)).error == "content_mismatch"
        web.page("gateway", f"/ipfs/{cid}", content)
        assert (await retrieve(f"ipfs://{cid}", fetcher, gateways)).data == content


@pytest.mark.parametrize("uri", ["", "http://a.example/", "ipfs://nonsense", "https://10.0.0.1/card.json"])
async def test_a_uri_that_leads_nowhere_is_an_error_code(uri: str) -> None:
    async with Fetcher() as fetcher:
        found = await retrieve(uri, fetcher, Gateways())
    assert found.data is None
    assert found.error
