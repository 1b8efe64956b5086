"""The demo's seller.yaml is one that `farebox sell` takes."""

from __future__ import annotations

from contracts.settings import parse_settings
from gateway.demo.models import ModelForSale
from gateway.demo.shop import seller_yaml
from seller.config import SellerConfig
from seller.price_settings import PriceSettings

PLACES = {
    "listen": "127.0.0.1:8402",
    "network": "eip155:31337",
    "rpc": "http://127.0.0.1:8545",
    "token": "0xF0583570740eDCD4f6dd8a90CF3562e2E07305b0",
    "pay_to": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
}


def read(for_sale: ModelForSale) -> SellerConfig:
    return parse_settings(seller_yaml(for_sale, "0.001", **PLACES), SellerConfig, "seller.yaml")


def test_a_chat_model_is_sold_on_every_route_it_may_be_asked_on() -> None:
    config = read(ModelForSale("http://127.0.0.1:9000", "qwen3.5:9b", "a model"))
    priced = {route.path: route.models for route in config.routes if not route.free}
    assert priced["/v1/chat/completions"] == {"qwen3.5:9b": PriceSettings(per_call="0.001")}
    assert set(priced) >= {"/v1/responses", "/v1/messages", "/v1/embeddings"}
    assert [route.path for route in config.routes if route.free] == ["/v1/models"]


def test_an_embeddings_model_is_sold_for_embeddings_only() -> None:
    config = read(ModelForSale("http://127.0.0.1:9000", "all-minilm-l6-v2", "a model", embeds=True))
    assert [route.path for route in config.routes if not route.free] == ["/v1/embeddings"]


def test_a_model_name_with_quotes_does_not_break_the_file() -> None:
    config = read(ModelForSale("http://127.0.0.1:9000", 'odd "name": {x}', "a model"))
    assert config.routes[0].models == {'odd "name": {x}': PriceSettings(per_call="0.001")}
