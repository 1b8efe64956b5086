"""The runtime code of contracts that stand at one address on every chain, for a local chain that starts without them.

Multicall3's and Permit2's bytes are read from the npm package `@eth-optimism/contracts-bedrock` and pinned by hash;
none are kept here. The x402 proxies are our own compatible re-implementations, not the audited bytecode.
"""

from __future__ import annotations

import hashlib
import re

from contracts.address import Address
from contracts.errors import LocalError
from contracts.evm.artifact import load_artifact
from contracts.evm.toolchain import npm_package
from contracts.keccak import keccak
from contracts.networks import MULTICALL3, PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["MULTICALL3", "PERMIT2", "PreinstallChanged", "permit2_code", "preinstalled_code"]

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


def preinstalled_code(chain_id: int) -> dict[Address, bytes]:
    """Return address → runtime code of all that a local chain gets. Raises `ToolMissing` or `PreinstallChanged`."""
    return {
        MULTICALL3: _multicall3_code(),
        PERMIT2: permit2_code(chain_id),
        X402_EXACT_PROXY: _compiled("X402ExactPermit2Proxy"),
        X402_UPTO_PROXY: _compiled("X402UptoPermit2Proxy"),
    }


def _multicall3_code() -> bytes:
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
    # Not that of `contracts.schemes.permit2`: a mistake there must make a local chain refuse what was signed.
    type_hash = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
    return keccak(type_hash + keccak(b"Permit2") + word_of_uint(chain_id) + word_of_address(PERMIT2))


def _compiled(name: str) -> bytes:
    return bytes.fromhex(load_artifact(name).deployed_bytecode.removeprefix("0x"))


def _constant(name: str, sha256: str) -> bytes:
    text = (npm_package("@eth-optimism/contracts-bedrock") / _SOURCE).read_text()
    found = re.search(rf'bytes internal constant {name} =\s*hex"([0-9a-fA-F]+)"', text)
    code = bytes.fromhex(found[1]) if found else b""
    if hashlib.sha256(code).hexdigest() != sha256:
        raise PreinstallChanged(f"{name} in the npm package is not the code we pinned")
    return code
