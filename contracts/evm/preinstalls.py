"""The runtime code of contracts that stand at one address on every chain, for a local chain that starts without them.

The bytes are read from the npm package `@eth-optimism/contracts-bedrock` and pinned by hash; none are kept here.
"""

from __future__ import annotations

import hashlib
import re

from contracts.address import Address
from contracts.errors import LocalError
from contracts.evm.toolchain import npm_package
from contracts.keccak import keccak
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["MULTICALL3", "PERMIT2", "PreinstallChanged", "multicall3_code", "permit2_code"]

MULTICALL3 = Address(bytes.fromhex("cA11bde05977b3631167028862bE2a173976CA11"))
PERMIT2 = Address(bytes.fromhex("000000000022D473030F116dDEE9F6B43aC78BA3"))

_SOURCE = "src/libraries/Preinstalls.sol"
_MULTICALL3_SHA256 = "2756d7c52baee85cacb504f6ee1df7aad6809ac8d94a4a111d76991f90d36d6e"
_PERMIT2_TEMPLATE_SHA256 = "62f01f46295c143ebea4d1cf12be2085d8b93d53f86d95afba4f016ee2d694ba"
# Where Permit2's compiler put its two immutables: the chain id and the domain separator made for it.
_PERMIT2_CHAIN_ID_AT = 6945
_PERMIT2_SEPARATOR_AT = 6983


class PreinstallChanged(LocalError):
    """The npm package does not hold the code we pinned."""

    code = "preinstall_changed"
    remedy = "run `make setup` with the committed config/devnet/package-lock.json"


def multicall3_code() -> bytes:
    """Return Multicall3's runtime code. Raises `ToolMissing` or `PreinstallChanged`."""
    return _constant("MultiCall3Code", _MULTICALL3_SHA256)


def permit2_code(chain_id: int) -> bytes:
    """Return Permit2's runtime code with the immutables of `chain_id`. Raises `ToolMissing` or `PreinstallChanged`."""
    code = bytearray(_constant("Permit2TemplateCode", _PERMIT2_TEMPLATE_SHA256))
    code[_PERMIT2_CHAIN_ID_AT : _PERMIT2_CHAIN_ID_AT + 32] = word_of_uint(chain_id)
    code[_PERMIT2_SEPARATOR_AT : _PERMIT2_SEPARATOR_AT + 32] = _permit2_domain_separator(chain_id)
    return bytes(code)


def _permit2_domain_separator(chain_id: int) -> bytes:
    """Return the 32-byte EIP-712 domain separator of Permit2, whose domain has no version."""
    type_hash = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
    return keccak(type_hash + keccak(b"Permit2") + word_of_uint(chain_id) + word_of_address(PERMIT2))


def _constant(name: str, sha256: str) -> bytes:
    text = (npm_package("@eth-optimism/contracts-bedrock") / _SOURCE).read_text()
    found = re.search(rf'bytes internal constant {name} =\s*hex"([0-9a-fA-F]+)"', text)
    code = bytes.fromhex(found[1]) if found else b""
    if hashlib.sha256(code).hexdigest() != sha256:
        raise PreinstallChanged(f"{name} in the npm package is not the code we pinned")
    return code
