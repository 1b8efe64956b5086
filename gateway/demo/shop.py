"""The demo seller's `seller.yaml`, as a seller would write it. Pure."""

from __future__ import annotations

import json

from gateway.demo.models import ModelForSale

__all__ = ["seller_yaml"]

_CHAT_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings")

_TEMPLATE = """\
upstream: {upstream}
listen: {listen}
public_url: http://{listen}
network: {network}
rpc: ["{rpc}"]
asset: {{address: "{token}", name: USDC, version: "2", decimals: 6, symbol: USDC}}
pay_to: "{pay_to}"
settle: auto
settler: {{kind: chain, key_file: settler.key}}
exposure: {{per_payer: "1.00", total: "100.00"}}
store: sqlite:///seller.db
routes:
{routes}
  - {{match: "GET /v1/models", free: true}}
default: deny
"""


def seller_yaml(
    for_sale: ModelForSale, price: str, *, listen: str, network: str, rpc: str, token: str, pay_to: str
) -> str:
    """Return the settings: one model, one price a call, on every route that model may be asked on."""
    models = json.dumps({for_sale.model: price})
    paths = [for_sale.route] if for_sale.embeds else _CHAT_ROUTES
    routes = "\n".join(f'  - {{match: "POST {path}", models: {models}}}' for path in paths)
    return _TEMPLATE.format(
        upstream=for_sale.upstream, listen=listen, network=network, rpc=rpc, token=token, pay_to=pay_to, routes=routes
    )
