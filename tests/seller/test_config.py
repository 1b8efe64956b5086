"""Settings that could cost money by mistake stop the start, and the error leads to the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import ConfigInvalid
from seller import PaymentMiddleware
from seller.advice import advice
from seller.config import CONFIG_VARIABLE, SellerConfig, read_config
from seller.pricebook import PriceBook
from seller.service import Seller

EXAMPLE = Path(__file__).parents[2] / "config" / "seller.example.yaml"

GOOD = """\
network: base-sepolia
rpc: ["http://127.0.0.1:8545"]
pay_to: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
settler: {kind: chain, key_file: settler.key}
routes:
  - {match: "GET /paid", price: "0.01"}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "seller.yaml"
    path.write_text(text)
    return path


def test_the_example_is_a_whole_configuration() -> None:
    config = read_config(EXAMPLE)
    assert set(SellerConfig.model_fields) == config.model_fields_set
    prices = {(q.route, q.model): q.price_atomic for r in PriceBook(config).routes for q in r.quotes}
    assert prices["POST /v1/chat/completions", None] == 1000
    assert prices["POST /v1/chat/completions", "big-model"] == 10_000
    assert prices["POST /v1/embeddings", "small-embedder"] == 100
    # 50 a call, 16,384 tokens at 0.15 and 2,048 at 0.60 of an atomic unit.
    assert prices["POST /v1/completions", None] == 50 + 3687


def test_the_shortest_configuration_uses_the_networks_own_dollar(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    assert config.token.symbol == "USDC"
    assert config.settle == "auto"
    assert config.exposure_atomic == (1_000_000, 100_000_000)


def test_a_seller_that_trusts_one_endpoint_alone_is_told_what_a_second_is_for(tmp_path: Path) -> None:
    (told,) = advice(read_config(write(tmp_path, GOOD)))
    assert told.startswith("rpc: one endpoint alone decides what is paid")
    two = GOOD.replace('8545"', '8545", "http://127.0.0.1:8546"')
    assert advice(read_config(write(tmp_path, two))) == []
    practice = GOOD.replace("base-sepolia", "eip155:31337") + (
        f'asset: {{address: "0x{"11" * 20}", name: USDC, version: "2", decimals: 6, symbol: USDC}}\n'
    )
    assert advice(read_config(write(tmp_path, practice))) == []


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, GOOD))
    assert config.settler.key_file == str(tmp_path / "settler.key")
    assert config.store == f"sqlite:///{tmp_path}/seller.db"


@pytest.mark.parametrize(
    ("find", "replace", "line", "says"),
    [
        ('price: "0.01"', 'price: "0,01"', 6, "0,01"),
        ('price: "0.01"', 'price: "NaN"', 6, "decimal point"),
        ('price: "0.01"', 'price: "-0.01"', 6, "decimal point"),
        ('price: "0.01"', 'price: "0"', 6, "more than zero"),
        ('price: "0.01"', 'price: "0.0000001"', 6, "6 decimals"),
        ('price: "0.01"', "price: 0.01", 6, "string"),
        ('price: "0.01"', "", 6, "free: true"),
        ('price: "0.01"', 'price: "0.01", free: true', 6, "no price"),
        ('price: "0.01"', 'models: {"m": "1e-3"}', 6, "decimal point"),
        ('"GET /paid"', '"/paid"', 6, "method"),
        ('"GET /paid"', '"GET /a//b"', 6, "exact path"),
        ('pay_to: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"\n', "", 1, "`pay_to` is missing"),
        ("0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x70997970C51812dc3A010C7d01b50e0d17dc79c8", 3, "checksum"),
        ("0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x" + "0" * 40, 3, "zero address"),
        ("routes:", "setle: auto\nroutes:", 5, "did you mean `settle`"),
        ("routes:", "default: allow\nroutes:", 5, "deny"),
        ("kind: chain, key_file: settler.key", "kind: facilitator", 4, "`url`"),
        ("network: base-sepolia", "network: basesepolia", 1, "eip155"),
        ("network: base-sepolia", "network: eip155:31337", 1, "asset"),
        ('rpc: ["http://127.0.0.1:8545"]', "rpc: []", 2, "reads the chain"),
        ("routes:", 'store: "mysql://x"\nroutes:', 5, "sqlite:///"),
        ("routes:", 'exposure: {per_payer: "a lot"}\nroutes:', 5, "decimal point"),
        ('{match: "GET /paid", price: "0.01"}', '{match: "GET /paid", free: true}', 5, "nothing is sold"),
    ],
)
def test_a_trap_is_refused_with_its_line(tmp_path: Path, find: str, replace: str, line: int, says: str) -> None:
    assert find in GOOD
    with pytest.raises(ConfigInvalid) as caught:
        read_config(write(tmp_path, GOOD.replace(find, replace)))
    assert f"seller.yaml:{line}:" in caught.value.message
    assert says in caught.value.message


def test_one_route_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="listed twice"):
        read_config(write(tmp_path, GOOD + '  - {match: "GET /paid", free: true}\n'))


USAGE = '{per_million_output_tokens: "0.6", max_output_tokens: 100}'


@pytest.mark.parametrize(
    ("price", "says"),
    [
        ('{per_million_output_tokens: "0.6"}', "needs `max_output_tokens`"),
        ('{per_million_input_tokens: "0.6", max_output_tokens: 9}', "needs `max_input_tokens`"),
        ('{per_million_output_tokens: "0.6", max_output_tokens: 9, max_input_tokens: 9}', "only goes with"),
        ('{per_million_output_tokens: "0.6", max_output_tokens: 0}', "greater than or equal to 1"),
        ('{per_million_output_tokens: "0,6", max_output_tokens: 9}', "decimal point"),
        ("{per_million_output_tokens: 0.6, max_output_tokens: 9}", "write it in quotes"),
        ('{per_million_output_tokens: "0.6", max_output_tokens: 9, minimum: "0"}', "more than zero"),
        ('{per_call: "0.1", minimum: "0.1"}', "only goes with a price per million"),
        ('{minimum: "0.1"}', "needs a `per_call`"),
        ("{}", "needs a `per_call`"),
        ('{per_million_tokens: "0.1"}', "did you mean"),
        ("[]", "a string"),
    ],
)
def test_a_price_by_usage_that_is_not_whole_is_refused_with_its_line(tmp_path: Path, price: str, says: str) -> None:
    for place in (f"price: {price}", f'models: {{"m": {price}}}'):
        text = GOOD.replace('{match: "GET /paid", price: "0.01"}', f'{{match: "POST /v1/chat/completions", {place}}}')
        with pytest.raises(ConfigInvalid) as caught:
            read_config(write(tmp_path, text))
        assert "seller.yaml:6:" in caught.value.message
        assert says in caught.value.message


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (f'{{match: "GET /paid", price: {USAGE}}}', "usage is only known of"),
        (f'{{match: "POST /v1/audio/speech", price: {USAGE}}}', "usage is only known of"),
        (f'{{match: "POST /v1/embeddings", price: {USAGE}}}', "generates no tokens"),
    ],
)
def test_usage_is_sold_only_where_it_is_known(tmp_path: Path, route: str, says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        read_config(write(tmp_path, GOOD.replace('{match: "GET /paid", price: "0.01"}', route)))


def test_a_price_by_usage_cannot_be_settled_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="known only after the work"):
        read_config(write(tmp_path, _by_usage("settle: before\n")))


def test_prices_by_usage_name_who_settles_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"upto\.facilitator: .* does not open"):
        PriceBook(read_config(write(tmp_path, _by_usage())))
    named = "upto: {facilitator: '0x70997970C51812dc3A010C7d01b50e0d17dc79C8'}\n"
    offer = PriceBook(read_config(write(tmp_path, _by_usage(named)))).routes[0].quote_for(None).offer
    assert (offer.scheme, offer.amount_atomic) == ("upto", 60)
    assert offer.extra["facilitatorAddress"] == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    with pytest.raises(ConfigInvalid, match=r"seller\.yaml:.*upto\.facilitator"):
        read_config(write(tmp_path, _by_usage("upto: {facilitator: '0x12'}\n")))
    elsewhere = _by_usage().replace("kind: chain, key_file: settler.key", 'kind: facilitator, url: "https://x.example"')
    with pytest.raises(ConfigInvalid, match="its /supported states"):
        read_config(write(tmp_path, elsewhere))


def test_a_facilitator_that_is_not_the_settlers_own_account_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settler.key").write_text("11" * 32)
    (tmp_path / "settler.key").chmod(0o600)
    own = "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"
    assert Seller(read_config(write(tmp_path, _by_usage())), settles=True).gas_account == own
    named = _by_usage("upto: {facilitator: '0x70997970C51812dc3A010C7d01b50e0d17dc79C8'}\n")
    with pytest.raises(ConfigInvalid, match=own):
        Seller(read_config(write(tmp_path, named)), settles=True)


def _by_usage(more: str = "") -> str:
    route = f'{{match: "POST /v1/chat/completions", price: {USAGE}}}'
    return GOOD.replace('{match: "GET /paid", price: "0.01"}', route).replace("routes:", f"{more}routes:")


async def nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("never called")


def test_without_arguments_the_middleware_reads_the_file_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(write(tmp_path, GOOD)))
    # The key file does not exist: a mounted middleware must not want it.
    assert PaymentMiddleware(nothing).seller.gas_account is None


def test_without_any_configuration_the_middleware_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(ConfigInvalid, match=CONFIG_VARIABLE):
        PaymentMiddleware(nothing)
