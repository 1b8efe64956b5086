"""The LiteLLM proxy's YAML: `paid/*` goes to the gateway, once per call, whatever comes back. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from urllib.parse import urlsplit

from contracts.errors import UsageError

__all__ = ["CALLBACK_FILE", "ProxyConfig", "callback_source"]

CALLBACK_FILE = "farebox_callback.py"

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PRINTABLE = re.compile(r"[!-~]{1,256}")

_TEMPLATE = """\
# A LiteLLM proxy that buys `paid/<model>` from a Farebox gateway. Written by `farebox litellm config`.
# LiteLLM loads {callback} from the folder of this file. Start it on loopback, offline price map:
#   LITELLM_LOCAL_MODEL_COST_MAP=True {master_key_env}=sk-... litellm --config THIS_FILE --host 127.0.0.1 --port 4000

model_list:
  - model_name: "paid/*"
    litellm_params:
      model: "openai/paid/*"       # the gateway sees the prefix too: one with a fallback pays for no bare name
      api_base: {api_base}
      api_key: "unused"            # the gateway asks for none; LiteLLM insists on one
      # A retry asks a seller again. LiteLLM cannot tell an unpaid failure from a paid one, so it never repeats a paid
      # call. Clients may: the gateway presents the payment of a failed request again, and takes no second one.
      num_retries: 0
      max_retries: 0
      # LiteLLM shuts a model out for seconds after one 404 or 401. Here that says nothing of the next call.
      cooldown_time: 0
      # Display only, and per token because LiteLLM knows no price per call. `farebox receipts` is the truth.
      input_cost_per_token: {price}
      output_cost_per_token: {price}
    model_info:
      # LiteLLM's /health calls every model; answered by LiteLLM itself, it buys nothing.
      health_check_params: {{mock_response: "not asked: a paid model answers for money only"}}
{fallback_entry}
litellm_settings:
  check_provider_endpoint: true    # /v1/models asks the gateway, instead of listing hundreds of names it cannot serve
  callbacks: ["farebox_callback.handler"]
{fallback_rule}
general_settings:
  master_key: {master_key}
  forward_client_headers_to_llm_api: true    # lets x-farebox-max-price, -seller and -request-id through
"""

_FALLBACK_ENTRY = """\
  - model_name: {name}
    litellm_params:
      model: {model}
      api_base: {api_base}
      api_key: "unused"
"""

_FALLBACK_RULE = """\
  # When a paid call fails, also when the pool of authorizations is empty (402). LiteLLM matches no pattern but "*".
  fallbacks: [{{"*": [{name}]}}]
"""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """What a user chooses about the proxy. Raises `UsageError` when made from values LiteLLM would misread.

    `gateway_url` is the gateway's base address, with or without `/v1`. `master_key_env` names the environment variable
    that holds the proxy's own key. `fallback` is a model that the OpenAI-compatible server at `fallback_url` (the
    gateway when None) serves free of charge. `display_price` is a decimal number of USD per token.
    """

    gateway_url: str = "http://127.0.0.1:8403"
    master_key_env: str = "LITELLM_MASTER_KEY"
    fallback: str | None = None
    fallback_url: str | None = None
    display_price: str = "0"

    def __post_init__(self) -> None:
        _api_base(self.gateway_url, "--gateway")
        _price(self.display_price)
        if not _ENVIRONMENT_NAME.fullmatch(self.master_key_env):
            raise UsageError(f"--master-key-env: {self.master_key_env!r} is not the name of an environment variable")
        if self.fallback_url is not None:
            _api_base(self.fallback_url, "--fallback-url")
            if self.fallback is None:
                raise UsageError("--fallback-url: needs --fallback MODEL")
        if self.fallback is not None:
            _check_fallback(self.fallback)

    def yaml(self) -> str:
        """Return the text of the proxy's configuration file."""
        entry = rule = ""
        if self.fallback is not None:
            name = json.dumps(self.fallback)
            base = _api_base(self.fallback_url or self.gateway_url, "--fallback-url")
            model = json.dumps(f"openai/{self.fallback}")
            entry = _FALLBACK_ENTRY.format(name=name, model=model, api_base=json.dumps(base))
            rule = _FALLBACK_RULE.format(name=name)
        return _TEMPLATE.format(
            callback=CALLBACK_FILE,
            api_base=json.dumps(_api_base(self.gateway_url, "--gateway")),
            price=_price(self.display_price),
            master_key_env=self.master_key_env,
            master_key=json.dumps(f"os.environ/{self.master_key_env}"),
            fallback_entry=entry,
            fallback_rule=rule,
        )


def callback_source() -> str:
    """Return the text of the callback module that LiteLLM loads from beside its configuration file."""
    return resources.files("gateway.litellm").joinpath(CALLBACK_FILE).read_text("utf-8")


def _api_base(url: str, option: str) -> str:
    """Return the OpenAI base address of a server: scheme, host, port, and a path that ends in `/v1`."""
    expected = f"{option}: expected an address such as http://127.0.0.1:8403, got {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(expected) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0 or not _PRINTABLE.fullmatch(url):
        raise UsageError(expected)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(f"{option}: {url!r} carries a user, query or fragment; give scheme, host and port only")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}/v1"


def _price(text: str) -> str:
    """Return a price per token as YAML reads it: plain decimals, no exponent."""
    try:
        price = Decimal(text)
    except InvalidOperation:
        price = Decimal("nan")
    if not price.is_finite() or price < 0 or price > 1:
        raise UsageError(f"--display-price: expected USD per token between 0 and 1, such as 0.000001, got {text!r}")
    return format(price, "f")


def _check_fallback(model: str) -> None:
    if not _PRINTABLE.fullmatch(model) or "*" in model:
        raise UsageError(f"--fallback: expected one model name without spaces or `*`, got {model!r}")
    if model.startswith("paid/"):
        raise UsageError(f"--fallback: {model!r} is paid for; name a model that is free")
