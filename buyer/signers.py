"""Signers: which wallet is meant, and what opens it.

`keyfile:PATH` reads 32 bytes of hex, `keystore:PATH` decrypts a Web3 keystore, `remote:URL` asks a signing server that
keeps the key to itself. Only commands that sign open a signer; the gateway never does.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from buyer.home import Home
from buyer.key_signer import KeySigner
from buyer.remote_signer import RemoteSigner
from buyer.signing import Signer, Transaction
from contracts.errors import NameUnknown, SignerFailed, UsageError
from contracts.nesting import recursion_limit_kept

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
