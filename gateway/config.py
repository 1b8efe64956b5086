"""`gateway.yaml`: every setting has a default, so that no file is needed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import pydantic

from buyer.home import STORE_VARIABLE, Home
from contracts.environment import DEFAULT_HOME, Environment
from contracts.errors import ConfigInvalid, FareboxError
from contracts.host_port import parse_host_port
from contracts.settings import StrictModel, load_settings
from contracts.storage import check_store_url, rooted_store_url, shown_store_url
from gateway.delegator.settings import DelegateSettings
from gateway.limits import CONCURRENT_MAX, CONCURRENT_PER_KEY
from gateway.routing_settings import RoutingSettings

__all__ = ["GatewayConfig", "Listen", "Shown", "host_only", "load_config", "override", "parse_listen", "shown"]

_LOOPBACK = ("localhost", "::1")


class Listen(StrictModel):
    """A host and a port (0: any free one) to listen on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in _LOOPBACK or self.host.startswith("127.")

    @property
    def text(self) -> str:
        """`host:port`, with brackets round an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """Return the meaning of `127.0.0.1:8403` or `[::1]:8403`. Raises `ValueError`."""
    host, port = parse_host_port(text)
    return Listen(host=host, port=port)


def _listen_text(text: str) -> str:
    parse_listen(text)
    return text


def _base_url(text: str) -> str:
    """Return a base URL without a trailing slash or `/v1`."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"expected a base URL, as http://127.0.0.1:11434, got {text[:100]!r}")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _rpc_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://host:port or https://host")
    return text


def _cap(text: str) -> str:
    """Return a limit for one call, of which each token reads its own amount: `0.01`, `$0.01` or `1000 atomic`."""
    if not re.fullmatch(r"\$?[0-9]+(\.[0-9]+)?( \S{1,20})?", text.strip(), re.ASCII):
        raise ValueError(f'expected digits with a decimal point, as "0.01", got {text[:60]!r}')
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("expected the name of an environment variable, never the key itself")
    return text


def _store_url(text: str) -> str:
    try:
        check_store_url(text)
    except FareboxError as error:
        raise ValueError(error.message.removeprefix("store: ")) from None
    return text


ListenText = Annotated[str, pydantic.AfterValidator(_listen_text)]
StoreUrl = Annotated[str, pydantic.AfterValidator(_store_url)]
BaseUrl = Annotated[str, pydantic.AfterValidator(_base_url)]
Cap = Annotated[str, pydantic.AfterValidator(_cap)]
RpcUrl = Annotated[str, pydantic.AfterValidator(_rpc_url)]
Variable = Annotated[str, pydantic.AfterValidator(_variable)]


class GatewayConfig(StrictModel):
    """The settings of `farebox serve`.

    `store` is the URL of the pool, where it is not in the home; a relative SQLite file is beside the settings file.
    `client_keys` says whether every call must come with a key of `farebox key create`; by default it must where others
    than this machine can connect. `calls_per_key` is how many calls of one key may be in flight. `max_price` caps one
    call unless the client's own `x-farebox-max-price` is lower.
    `fallback` is the base URL of an OpenAI-compatible server that answers every model not named `paid/…`; with it, a
    bare name never pays. The key in the environment variable `fallback_key_env` is sent there in place of the client's
    Authorization. `routing` says, by model ("*" for all others), how calls are placed that several purchases could
    answer. With `delegate`, `delegate/<planner-model>` is a model too: it plans a task and buys its parts.
    """

    listen: ListenText = "127.0.0.1:8403"
    admin_listen: ListenText = "127.0.0.1:9403"
    home: str | None = None
    store: StoreUrl | None = None
    max_price: Cap | None = None
    client_keys: Literal["required", "optional"] | None = None
    calls_per_key: Annotated[int, pydantic.Field(ge=1, le=CONCURRENT_MAX)] = CONCURRENT_PER_KEY
    rpc: list[RpcUrl] = pydantic.Field(default_factory=list)
    fallback: BaseUrl | None = None
    fallback_key_env: Variable | None = None
    routing: dict[str, RoutingSettings] = pydantic.Field(default_factory=dict)
    delegate: DelegateSettings | None = None

    @pydantic.model_validator(mode="after")
    def _complete(self) -> GatewayConfig:
        if self.fallback_key_env and not self.fallback:
            raise ValueError("fallback_key_env needs fallback")
        return self

    @property
    def needs_keys(self) -> bool:
        """Whether every call must come with a client key."""
        if self.client_keys is not None:
            return self.client_keys == "required"
        return not parse_listen(self.listen).is_loopback

    def open_home(self) -> Home:
        """Open the home and the store this file names, or those of FAREBOX_HOME and FAREBOX_STORE. Raises as that."""
        return Home.open(Path(self.home).expanduser() if self.home else None, store=self.store)

    def fallback_key(self) -> str | None:
        """Return the key for the fallback. Raises `ConfigInvalid` when its variable is empty."""
        if self.fallback_key_env is None:
            return None
        key = os.environ.get(self.fallback_key_env)
        if not key:
            raise ConfigInvalid(
                f"fallback_key_env: the environment variable {self.fallback_key_env} is empty",
                remedy=f"export {self.fallback_key_env}, or remove fallback_key_env",
            )
        return key


def load_config(path: Path | None) -> GatewayConfig:
    """Return the settings in `path`, or the defaults without one. Raises `ConfigInvalid`."""
    if path is None:
        return GatewayConfig()
    settings = load_settings(path, GatewayConfig)
    if settings.store is None:
        return settings
    return settings.model_copy(update={"store": rooted_store_url(settings.store, path.resolve().parent)})


def override(config: GatewayConfig, **options: str | None) -> GatewayConfig:
    """Return `config` with the options given on the command line. Raises `ConfigInvalid` naming the option."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return GatewayConfig.model_validate({**config.model_dump(), **given})
    except pydantic.ValidationError as error:
        detail = error.errors(include_url=False)[0]
        option = str(detail["loc"][0]).replace("_", "-")
        raise ConfigInvalid(f"--{option}: {str(detail['msg']).removeprefix('Value error, ')}") from None


class Shown(NamedTuple):
    """One setting as `farebox config show` prints it."""

    name: str
    value: Any
    origin: str


def shown(config: GatewayConfig, path: Path | None) -> list[Shown]:
    """Return every setting with where it comes from. Of URLs that may carry keys, only the host is shown."""
    file = str(path)
    rows = [
        Shown(name, value, file if name in config.model_fields_set else "default")
        for name, value in config.model_dump(exclude={"home", "store", "rpc"}).items()
    ]
    environment = Environment()
    if config.home is None and environment.home:
        rows.append(Shown("home", environment.home, "FAREBOX_HOME"))
    else:
        rows.append(Shown("home", config.home or DEFAULT_HOME, file if config.home else "default"))
    store = config.store
    if store is None and environment.store:
        rows.append(Shown("store", shown_store_url(environment.store), STORE_VARIABLE))
    else:
        rows.append(Shown("store", None if store is None else shown_store_url(store), file if store else "default"))
    rows.append(Shown("rpc", [host_only(url) for url in config.rpc], file if config.rpc else "default"))
    return rows


def host_only(url: str) -> str:
    """Return a URL without the parts that may carry a key."""
    parts = urlsplit(url)
    if not parts.hostname:
        return "(not a URL)"
    secret = parts.username or parts.query or parts.path.strip("/")
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}" + ("/***" if secret else "")
