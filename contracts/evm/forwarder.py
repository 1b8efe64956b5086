"""ERC-2771 forwarding: an owner signs a call, another account sends it and pays the gas.

Source: OpenZeppelin `ERC2771Forwarder`, ERC-2771, EIP-5267 (the forwarder tells its own signing domain).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from contracts.address import Address, address_text, parse_address
from contracts.errors import UsageError
from contracts.evm.artifact import load_artifact
from contracts.evm.create2 import deployed_address, deployment
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import call_object
from contracts.keccak import keccak
from contracts.schemes.authorization import Call
from contracts.typed_data import Domain, signing_digest, word_of_address, word_of_uint

__all__ = ["ForwardRequest", "Forwarder", "forward_call", "forwarder_address", "forwarder_deployment", "read_forwarder"]

_REQUEST_TYPE_HASH = keccak(
    b"ForwardRequest(address from,address to,uint256 value,uint256 gas,uint256 nonce,uint48 deadline,bytes data)"
)
_EXECUTE = "(address,address,uint256,uint256,uint48,bytes,bytes)"
_DOMAIN_TYPES = ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A call that `sender` signs, without ether: `gas` is what it may use, `deadline_s` when it ends."""

    sender: Address
    call: Call
    gas: int
    nonce: int
    deadline_s: int

    def digest(self, domain: Domain) -> bytes:
        """Return the 32 bytes that the sender signs."""
        words = (
            _REQUEST_TYPE_HASH,
            word_of_address(self.sender),
            word_of_address(self.call.to),
            word_of_uint(0),
            word_of_uint(self.gas),
            word_of_uint(self.nonce),
            word_of_uint(self.deadline_s),
            keccak(self.call.data),
        )
        return signing_digest(domain.separator, keccak(b"".join(words)))


@dataclass(frozen=True, slots=True)
class Forwarder:
    """A forwarder as the chain has it: its signing domain, and the next nonce of one sender."""

    domain: Domain
    nonce: int

    @property
    def address(self) -> Address:
        """Where it stands."""
        return self.domain.verifying_contract


def forward_call(forwarder: Address, request: ForwardRequest, signature: bytes) -> Call:
    """Return the call by which anybody submits a signed request."""
    row = (
        address_text(request.sender),
        address_text(request.call.to),
        0,
        request.gas,
        request.deadline_s,
        request.call.data,
        signature,
    )
    return Call(forwarder, keccak(f"execute({_EXECUTE})".encode())[:4] + encode([_EXECUTE], [row]))


@lru_cache(maxsize=1)
def forwarder_address() -> Address:
    """Return where Farebox's forwarder stands on every chain that has it."""
    return deployed_address(_creation_code())


def forwarder_deployment() -> Call:
    """Return the call that puts the forwarder there; anybody may send it, once."""
    return deployment(_creation_code())


async def read_forwarder(rpc: Rpc, forwarder: Address, sender: Address) -> Forwarder:
    """Return a forwarder's domain and the next nonce of `sender`. Raises `ChainUnavailable` or `UsageError`."""
    nonces = keccak(b"nonces(address)")[:4] + word_of_address(sender)
    answers = await rpc.batch(
        [("eth_call", [call_object(forwarder, data), "latest"]) for data in (keccak(b"eip712Domain()")[:4], nonces)]
    )
    texts = ["0x" if isinstance(answer, RpcRefused) else answer for answer in answers]
    try:
        domain, nonce = (bytes.fromhex(text.removeprefix("0x")) for text in texts)
        _, name, version, chain_id, contract, _, _ = decode(_DOMAIN_TYPES, domain)
        return Forwarder(Domain(name, version, chain_id, parse_address(contract)), int.from_bytes(nonce))
    except (AttributeError, DecodingError, ValueError):
        raise UsageError(f"{address_text(forwarder)}: this forwarder does not tell its domain and nonces") from None


def _creation_code() -> bytes:
    return bytes.fromhex(load_artifact("WalletForwarder").bytecode.removeprefix("0x"))
