"""EIP-712 documents as `eth_signTypedData_v4` takes them: what a remote signer is shown of what it signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contracts.address import Address, address_text
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.gas_sponsoring import Permit
from contracts.schemes.permit2 import Proxy
from contracts.schemes.rails import proxy_of
from contracts.typed_data import Domain

__all__ = ["approval_document", "authorization_document", "cancellation_document", "permit_document"]

_Members = Sequence[tuple[str, str]]

_TRANSFER: _Members = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_CANCEL: _Members = (("authorizer", "address"), ("nonce", "bytes32"))
_APPROVE: _Members = (("digest", "bytes32"),)
_PERMIT: _Members = (
    ("owner", "address"),
    ("spender", "address"),
    ("value", "uint256"),
    ("nonce", "uint256"),
    ("deadline", "uint256"),
)
_PERMIT2: _Members = (
    ("permitted", "TokenPermissions"),
    ("spender", "address"),
    ("nonce", "uint256"),
    ("deadline", "uint256"),
    ("witness", "Witness"),
)
_TOKEN_PERMISSIONS: _Members = (("token", "address"), ("amount", "uint256"))
_WITNESS: _Members = (("to", "address"), ("validAfter", "uint256"))
_METERED_WITNESS: _Members = (("to", "address"), ("facilitator", "address"), ("validAfter", "uint256"))


def authorization_document(authorization: Authorization, offer: Offer) -> dict[str, Any]:
    """Return what is signed to pay `offer`, whichever way that is."""
    proxy = proxy_of(offer)
    return _transfer(authorization, offer.domain) if proxy is None else _permit2(authorization, offer, proxy)


def cancellation_document(payer: Address, nonce: bytes, domain: Domain) -> dict[str, Any]:
    """Return the EIP-3009 revocation of one authorization."""
    message = {"authorizer": address_text(payer), "nonce": "0x" + nonce.hex()}
    return _document("CancelAuthorization", {"CancelAuthorization": _CANCEL}, message, _token_domain(domain))


def approval_document(digest: bytes, domain: Domain) -> dict[str, Any]:
    """Return an agent's approval of one payment of the AgentWallet in `domain`."""
    return _document("Approve", {"Approve": _APPROVE}, {"digest": "0x" + digest.hex()}, _token_domain(domain))


def permit_document(permit: Permit, domain: Domain) -> dict[str, Any]:
    """Return an EIP-2612 permit of the token in `domain`."""
    message = {
        "owner": address_text(permit.owner),
        "spender": address_text(permit.spender),
        "value": str(permit.value_atomic),
        "nonce": str(permit.nonce),
        "deadline": str(permit.deadline_s),
    }
    return _document("Permit", {"Permit": _PERMIT}, message, _token_domain(domain))


def _transfer(authorization: Authorization, domain: Domain) -> dict[str, Any]:
    message = {
        "from": address_text(authorization.payer),
        "to": address_text(authorization.payee),
        "value": str(authorization.value_atomic),
        "validAfter": str(authorization.valid_after_s),
        "validBefore": str(authorization.valid_before_s),
        "nonce": "0x" + authorization.nonce.hex(),
    }
    name = "TransferWithAuthorization"
    return _document(name, {name: _TRANSFER}, message, _token_domain(domain))


def _permit2(authorization: Authorization, offer: Offer, proxy: Proxy) -> dict[str, Any]:
    witness = {"to": address_text(authorization.payee), "validAfter": str(authorization.valid_after_s)}
    if authorization.facilitator is not None:
        witness["facilitator"] = address_text(authorization.facilitator)
    message = {
        "permitted": {"token": offer.asset.address_text, "amount": str(authorization.value_atomic)},
        "spender": address_text(proxy.address),
        "nonce": str(int.from_bytes(authorization.nonce, "big")),
        "deadline": str(authorization.valid_before_s),
        "witness": witness,
    }
    types = {
        "PermitWitnessTransferFrom": _PERMIT2,
        "TokenPermissions": _TOKEN_PERMISSIONS,
        "Witness": _METERED_WITNESS if proxy.is_metered else _WITNESS,
    }
    # Permit2's domain has no version.
    domain = {"name": "Permit2", "chainId": offer.network.chain_id, "verifyingContract": address_text(PERMIT2)}
    return _document("PermitWitnessTransferFrom", types, message, domain)


def _token_domain(domain: Domain) -> dict[str, Any]:
    return {
        "name": domain.name,
        "version": domain.version,
        "chainId": domain.chain_id,
        "verifyingContract": address_text(domain.verifying_contract),
    }


def _document(
    primary: str, types: Mapping[str, _Members], message: Mapping[str, Any], domain: dict[str, Any]
) -> dict[str, Any]:
    kinds = {"name": "string", "version": "string", "chainId": "uint256", "verifyingContract": "address"}
    members = {"EIP712Domain": [(name, kinds[name]) for name in domain], **types}
    return {
        "types": {
            struct: [{"name": name, "type": kind} for name, kind in fields] for struct, fields in members.items()
        },
        "primaryType": primary,
        "domain": domain,
        "message": message,
    }
