"""`facilitator.yaml`: which payments are settled for others, from which price on, and with whose gas."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pydantic

from contracts.address import Address, parse_address
from contracts.errors import FareboxError
from contracts.money import Asset, parse_amount
from contracts.networks import Network, parse_network
from contracts.settings import SettingInvalid, StrictModel, load_settings
from contracts.storage import check_store_url, rooted_store_url
from seller.config import AssetSettings, WalletSettings, asset_for, split_host_port

__all__ = ["FacilitatorConfig", "read_facilitator_config"]


class FacilitatorConfig(StrictModel):
    """All settings of a facilitator. It serves one asset on one network; run one more for another."""

    listen: str = "127.0.0.1:8405"
    network: str
    rpc: list[str] = pydantic.Field(min_length=1)
    asset: AssetSettings | None = None
    key_file: str
    max_fee_wei: int | None = pydantic.Field(None, gt=0)
    minimum: str
    pay_to: list[str] = pydantic.Field(default_factory=list)
    wallets: WalletSettings = WalletSettings()
    store: str = "sqlite:///facilitator.db"

    @property
    def chain(self) -> Network:
        """The network money moves on."""
        return parse_network(self.network)

    @property
    def token(self) -> Asset:
        """The asset that is settled: the one given, else the network's default."""
        return asset_for(self.chain, self.asset)

    @property
    def minimum_atomic(self) -> int:
        """The smallest payment whose settlement is worth its gas, in atomic units."""
        return parse_amount(self.minimum, self.token, "minimum")

    @property
    def wallet_factories(self) -> frozenset[Address]:
        """The factories whose wallets may pay before they exist (ERC-6492)."""
        return self.wallets.factories

    @property
    def payees(self) -> frozenset[Address]:
        """Whom money may go to; empty for anybody."""
        return frozenset(parse_address(text, f"pay_to[{index}]") for index, text in enumerate(self.pay_to))

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, parse in (
            ("network", lambda: self.chain),
            ("asset", lambda: self.token),
            ("minimum", lambda: self.minimum_atomic),
            ("pay_to", lambda: self.payees),
            ("wallets", lambda: self.wallet_factories),
            ("listen", lambda: split_host_port(self.listen, "listen")),
            ("store", lambda: check_store_url(self.store)),
        ):
            try:
                parse()
            except FareboxError as error:
                raise SettingInvalid((field,), error.message.removeprefix(f"{field}: ")) from None
        for index, url in enumerate(self.rpc):
            if not url.startswith(("http://", "https://")):
                raise SettingInvalid(("rpc", index), "expected http:// or https:// and a host")
        return self


def read_facilitator_config(path: Path) -> FacilitatorConfig:
    """Return the settings in a file; relative `store` and `key_file` start at its folder. Raises `ConfigInvalid`."""
    settings = load_settings(path, FacilitatorConfig)
    folder = path.resolve().parent
    key_file = str(folder / Path(settings.key_file).expanduser())
    return settings.model_copy(update={"key_file": key_file, "store": rooted_store_url(settings.store, folder)})
