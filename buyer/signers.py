"""Signers: what holds a wallet key, behind one protocol. Policy stands in front (`buyer.bounded`), never in here.

`keyfile:PATH` reads 32 bytes of hex, `keystore:PATH` decrypts a Web3 keystore, `remote:URL` asks a signing server that
keeps the key to itself. Only commands that sign open a signer; the gateway never does.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from buyer.endpoint import parse_url
from buyer.flow import Lost, NeverLeft, Outgoing
from buyer.home import Home
from buyer.http import open_client, send
from buyer.limits import SIGNER_ANSWER_BYTES_MAX, SIGNER_PARALLEL, SIGNER_TIMEOUT_S
from contracts.address import Address, address_text, parse_address
from contracts.errors import FareboxError, MalformedMessage, NameUnknown, SignerFailed, UsageError
from contracts.nesting import recursion_limit_kept
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import cancel_digest, transfer_digest
from contracts.signature import SigningKey, parse_signature
from contracts.typed_data import Domain
from contracts.wire import decode_json

__all__ = [
    "KeySigner",
    "RemoteSigner",
    "Signer",
    "Transaction",
    "open_signer",
    "recall_signer",
    "remember_signer",
]

_SECRET = re.compile(r"(?:0x)?([0-9a-fA-F]{64})", re.ASCII)
_FILE_BYTES_MAX = 64 * 1024
_PASSWORD_FILE = "FAREBOX_KEYSTORE_PASSWORD_FILE"  # noqa: S105 - the name of a variable

_DOMAIN_MEMBERS = (("name", "string"), ("version", "string"), ("chainId", "uint256"), ("verifyingContract", "address"))
_TRANSFER_MEMBERS = (
    ("from", "address"),
    ("to", "address"),
    ("value", "uint256"),
    ("validAfter", "uint256"),
    ("validBefore", "uint256"),
    ("nonce", "bytes32"),
)
_CANCEL_MEMBERS = (("authorizer", "address"), ("nonce", "bytes32"))


class Transaction(msgspec.Struct, frozen=True):
    """An EIP-1559 transaction without ether: what `remove --cancel-onchain` submits."""

    chain_id: int
    to: Address
    nonce: int
    gas_limit: int
    max_fee_per_gas: int
    max_priority_fee_per_gas: int
    data: bytes


class Signer(Protocol):
    """Signs for one address. Every method raises `SignerFailed`."""

    @property
    def address(self) -> Address:
        """The wallet that pays."""

    def sign_authorizations(self, authorizations: Sequence[Authorization], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature for each, in order."""

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""

    def sign_transaction(self, transaction: Transaction) -> bytes:
        """Return the raw signed transaction."""

    def close(self) -> None:
        """Let go of the key or the connection."""


def open_signer(spec: str, *, allow_http: bool = False) -> Signer:
    """Open `keyfile:PATH`, `keystore:PATH` or `remote:URL[#ADDRESS]`.

    A key file that others can read is refused. A keystore's password comes from the file named in
    `FAREBOX_KEYSTORE_PASSWORD_FILE`, else from a prompt. Raises `UsageError` or `SignerFailed`.
    """
    kind, _, rest = spec.partition(":")
    if kind == "keyfile" and rest:
        return KeySigner(_read_secret(Path(rest).expanduser()))
    if kind == "keystore" and rest:
        return KeySigner(_read_keystore(Path(rest).expanduser()))
    if kind == "remote" and rest:
        return RemoteSigner(rest, allow_http=allow_http)
    raise UsageError(
        f"--signer: expected keyfile:PATH, keystore:PATH or remote:URL, got {_without_secrets(spec)!r}",
        remedy="name the wallet with --signer, or in FAREBOX_SIGNER",
    )


def remember_signer(home: Home, name: str, spec: str) -> None:
    """Note which signer pays for a purchase; kept beside the pool, where no spending process looks."""
    path = home.folder("signers") / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(spec + "\n")


def recall_signer(home: Home, name: str) -> str:
    """Return the signer noted for a purchase. Raises `NameUnknown`."""
    try:
        return (home.folder("signers") / name).read_text("utf-8").strip()
    except OSError:
        raise NameUnknown(f"{name}: no signer is noted for it", remedy="name the wallet with --signer") from None


class KeySigner:
    """A key in this process's memory."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._key = SigningKey(secret)

    @property
    def address(self) -> Address:
        """The wallet that pays."""
        return self._key.address

    def sign_authorizations(self, authorizations: Sequence[Authorization], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature for each, in order."""
        return [self._key.sign(transfer_digest(authorization, domain)) for authorization in authorizations]

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""
        return [self._key.sign(cancel_digest(self.address, nonce, domain)) for nonce in nonces]

    def sign_transaction(self, transaction: Transaction) -> bytes:
        """Return the raw signed transaction."""
        with recursion_limit_kept():
            from eth_account import Account

        signed = Account.sign_transaction(
            {
                "type": 2,
                "chainId": transaction.chain_id,
                "to": address_text(transaction.to),
                "nonce": transaction.nonce,
                "gas": transaction.gas_limit,
                "maxFeePerGas": transaction.max_fee_per_gas,
                "maxPriorityFeePerGas": transaction.max_priority_fee_per_gas,
                "value": 0,
                "data": transaction.data,
            },
            self._secret,
        )
        return bytes(signed.raw_transaction)

    def close(self) -> None:
        """Nothing is held open."""

    def __repr__(self) -> str:
        return f"KeySigner({address_text(self.address)})"


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

    def sign_authorizations(self, authorizations: Sequence[Authorization], domain: Domain) -> list[bytes]:
        """Return one 65-byte signature for each, in order; several are asked for at once."""
        return self._sign_all([_transfer_document(authorization, domain) for authorization in authorizations])

    def sign_cancellations(self, nonces: Sequence[bytes], domain: Domain) -> list[bytes]:
        """Return one signature over `CancelAuthorization` for each nonce, in order."""
        return self._sign_all([_cancel_document(self._address, nonce, domain) for nonce in nonces])

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


def _transfer_document(authorization: Authorization, domain: Domain) -> dict[str, Any]:
    message = {
        "from": address_text(authorization.payer),
        "to": address_text(authorization.payee),
        "value": str(authorization.value_atomic),
        "validAfter": str(authorization.valid_after_s),
        "validBefore": str(authorization.valid_before_s),
        "nonce": "0x" + authorization.nonce.hex(),
    }
    return _document("TransferWithAuthorization", _TRANSFER_MEMBERS, message, domain)


def _cancel_document(payer: Address, nonce: bytes, domain: Domain) -> dict[str, Any]:
    message = {"authorizer": address_text(payer), "nonce": "0x" + nonce.hex()}
    return _document("CancelAuthorization", _CANCEL_MEMBERS, message, domain)


def _document(
    primary: str, members: Sequence[tuple[str, str]], message: dict[str, str], domain: Domain
) -> dict[str, Any]:
    """Return EIP-712 typed data as `eth_signTypedData_v4` takes it."""
    return {
        "types": {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN_MEMBERS],
            primary: [{"name": name, "type": kind} for name, kind in members],
        },
        "primaryType": primary,
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": address_text(domain.verifying_contract),
        },
        "message": message,
    }


def _read_secret(path: Path) -> bytes:
    found = _SECRET.fullmatch(_read_private(path, "key file").strip())
    if found is None:
        raise SignerFailed(f"{path}: expected 64 hex digits", remedy="write the 32-byte private key as hex")
    return bytes.fromhex(found[1])


def _read_keystore(path: Path) -> bytes:
    with recursion_limit_kept():
        from eth_account import Account

    text = _read_private(path, "keystore")
    try:
        secret: bytes = Account.decrypt(text, _password(path))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise SignerFailed(f"{path}: cannot be decrypted: {error}", remedy="check the password") from None
    return bytes(secret)


def _password(path: Path) -> str:
    named = os.environ.get(_PASSWORD_FILE)
    if named:
        return _read_private(Path(named).expanduser(), "password file").rstrip("\r\n")
    if not sys.stdin.isatty():
        raise SignerFailed(f"{path}: needs a password, and nobody can be asked", remedy=f"set {_PASSWORD_FILE}")
    ask: Callable[[str], str] = getpass.getpass
    return ask(f"Password of {path}: ")


def _read_private(path: Path, what: str) -> str:
    """Return a small file that only its owner can read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise SignerFailed(f"{path}: other users can read this {what}", remedy=f"run: chmod 600 {path}")
            return file.read(_FILE_BYTES_MAX).decode("utf-8")
    except UnicodeDecodeError:
        raise SignerFailed(f"{path}: is not a text file") from None
    except OSError as error:
        raise SignerFailed(f"{path}: {error.strerror}", remedy="check the path given to --signer") from None


def _without_secrets(spec: str) -> str:
    """Return what may be shown of a mistyped signer, which might be the key itself."""
    kind, colon, _ = spec.partition(":")
    return f"{kind[:20]}:..." if colon and len(kind) <= 20 else "..."
