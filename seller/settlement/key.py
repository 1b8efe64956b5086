"""The gas key: a file of 32 bytes in hex that only its owner may read."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from contracts.address import Address
from contracts.errors import ConfigInvalid, FareboxError
from contracts.nesting import recursion_limit_kept
from contracts.signature import SigningKey
from seller.settlement.outbox import Form, now_ms

__all__ = ["GasKey", "read_gas_key"]

_HEX_KEY = re.compile(r"(?:0x)?([0-9a-fA-F]{64})\s*", re.ASCII)
_KEY_FILE_BYTES_MAX = 128


@dataclass(frozen=True, slots=True)
class GasKey:
    """Pays for settlement transactions. It needs ether for gas and no token at all."""

    address: Address
    _secret: bytes = field(repr=False)

    @staticmethod
    def prepare() -> None:
        """Load what signing needs now, a third of a second of imports, instead of while a client waits."""
        import eth_abi.abi  # noqa: F401

        with recursion_limit_kept():
            import eth_account  # noqa: F401

    def sign(
        self,
        *,
        chain_id: int,
        nonce: int,
        to: Address,
        data: bytes,
        gas: int,
        max_fee_wei: int,
        priority_fee_wei: int,
    ) -> Form:
        """Return a signed EIP-1559 transaction, ready to be stored and sent."""
        with recursion_limit_kept():
            from eth_account import Account

        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": chain_id,
                "nonce": nonce,
                "to": bytes(to),
                "value": 0,
                "data": data,
                "gas": gas,
                "maxFeePerGas": max_fee_wei,
                "maxPriorityFeePerGas": priority_fee_wei,
            },
            self._secret,
        )
        return Form(
            "0x" + bytes(signed.hash).hex(), bytes(signed.raw_transaction), max_fee_wei, priority_fee_wei, now_ms()
        )


def read_gas_key(path: Path) -> GasKey:
    """Return the key in a file. Raises `ConfigInvalid` when others may read it or it holds no key."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise ConfigInvalid(
                f"settler.key_file: {path} may be read by others (mode {stat.S_IMODE(mode):04o})",
                remedy=f"chmod 600 {path}",
            )
        with path.open(encoding="ascii", errors="replace") as file:
            text = file.read(_KEY_FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigInvalid(f"settler.key_file: {path}: {error.strerror}") from None
    found = _HEX_KEY.fullmatch(text)
    if found is None:
        raise ConfigInvalid(f"settler.key_file: {path} does not hold 64 hex digits")
    secret = bytes.fromhex(found[1])
    try:
        return GasKey(SigningKey(secret).address, secret)
    except FareboxError as error:
        raise ConfigInvalid(f"settler.key_file: {path}: {error.message}") from None
