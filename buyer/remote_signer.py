"""A signer behind HTTP, which keeps the key to itself and is asked for one signature at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec

from buyer.checked import checked_signature
from buyer.endpoint import parse_url
from buyer.flow import Lost, NeverLeft, Outgoing
from buyer.http import open_client, send
from buyer.limits import SIGNER_ANSWER_BYTES_MAX, SIGNER_PARALLEL, SIGNER_TIMEOUT_S
from buyer.signing import Transaction
from buyer.typed_documents import approval_document, authorization_document, cancellation_document, permit_document
from contracts.address import Address, address_text, parse_address
from contracts.errors import FareboxError, MalformedMessage, SignerFailed, UsageError
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.gas_sponsoring import Permit, permit_digest
from contracts.signature import parse_signature
from contracts.typed_data import Domain
from contracts.wire import decode_json

__all__ = ["RemoteSigner"]


class RemoteSigner:
    """A signing server: `GET /api/v1/keys`, `POST /api/v1/sign/{address}/typed-data` and `/transaction`."""

    def __init__(self, url: str, *, allow_http: bool = False) -> None:
        base, _, wanted = url.partition("#")
        parse_url(base, allow_http=allow_http, field="--signer remote:URL")
        self._base = base.rstrip("/")
        self._client = open_client(SIGNER_TIMEOUT_S)
        try:
            self._address = self._choose_key(wanted)
        except BaseException:
            self._client.close()
            raise

    @property
    def address(self) -> Address:
        """The wallet that pays."""
        return self._address

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        """Return one 65-byte signature for each, in order; several are asked for at once."""
        return self._sign_all([authorization_document(authorization, offer) for authorization in authorizations])

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""
        return self._sign_all([cancellation_document(self._address, nonce, domain) for nonce in nonces])

    def sign_approvals(self, digests: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature over an AgentWallet's `Approve` for each 32-byte digest, in order."""
        return self._sign_all([approval_document(digest, domain) for digest in digests])

    def sign_permit(self, permit: Permit, domain: Domain) -> bytes:
        """Return the 65-byte signature over an EIP-2612 permit of the token in `domain`."""
        return checked_signature(
            permit_digest(permit, domain), self._sign(permit_document(permit, domain)), self._address
        )

    def sign_transaction(self, transaction: Transaction) -> bytes:
        """Return the raw signed transaction."""
        document = {
            "chain_id": transaction.chain_id,
            "to": address_text(transaction.to),
            "nonce": transaction.nonce,
            "gas_limit": transaction.gas_limit,
            "max_fee_per_gas": transaction.max_fee_per_gas,
            "max_priority_fee_per_gas": transaction.max_priority_fee_per_gas,
            "value": "0x0",
            "data": "0x" + transaction.data.hex(),
        }
        return parse_signature(self._post("transaction", document, "signed_transaction"), "signed_transaction")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _choose_key(self, wanted: str) -> Address:
        answer = self._ask(Outgoing("GET", f"{self._base}/api/v1/keys"))
        keys = answer.get("keys")
        if not isinstance(keys, list) or not keys:
            raise SignerFailed("the remote signer holds no key")
        try:
            addresses = [parse_address(key, "keys") for key in keys]
        except FareboxError as error:
            raise SignerFailed(f"the remote signer's keys are not addresses: {error.message}") from None
        if wanted:
            address = parse_address(wanted, "--signer remote:URL#ADDRESS")
            if address not in addresses:
                raise SignerFailed(f"the remote signer does not hold {address_text(address)}")
            return address
        if len(addresses) > 1:
            listed = ", ".join(address_text(address) for address in addresses[:10])
            raise UsageError(
                f"--signer: the remote signer holds several keys: {listed}", remedy="write remote:URL#ADDRESS"
            )
        return addresses[0]

    def _sign_all(self, documents: list[dict[str, Any]]) -> list[bytes]:
        if len(documents) == 1:
            return [self._sign(documents[0])]
        with ThreadPoolExecutor(SIGNER_PARALLEL, thread_name_prefix="signer") as executor:
            return list(executor.map(self._sign, documents))

    def _sign(self, document: dict[str, Any]) -> bytes:
        return parse_signature(self._post("typed-data", document, "signature"), "signature")

    def _post(self, what: str, document: dict[str, Any], member: str) -> str:
        url = f"{self._base}/api/v1/sign/{address_text(self._address)}/{what}"
        body = msgspec.json.encode(document)
        answer = self._ask(Outgoing("POST", url, [("content-type", "application/json")], body))
        value = answer.get(member)
        if not isinstance(value, str):
            raise SignerFailed(f"the remote signer's answer has no {member}")
        return value

    def _ask(self, request: Outgoing) -> dict[str, Any]:
        try:
            incoming = send(self._client, request, SIGNER_ANSWER_BYTES_MAX)
        except (NeverLeft, Lost) as problem:
            raise SignerFailed(
                f"the remote signer at {httpx.URL(self._base).host} does not answer ({problem})"
            ) from None
        try:
            answer = decode_json(incoming.body, dict[str, Any], "body")
        except MalformedMessage:
            answer = None
        if answer is None or incoming.status != 200:
            reason = "its answer is not JSON" if answer is None else answer.get("code") or answer.get("error")
            raise SignerFailed(f"the remote signer answered {incoming.status}: {str(reason)[:120]}")
        return answer
