"""IPFS content ids, and proof that a gateway gave the content they name.

A gateway is asked for the raw block, whose SHA-256 the id carries; small files are one block. Sources: CID
specification, multiformats table, dag-pb and UnixFS specifications.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

__all__ = ["Cid", "block_matches", "file_in_block", "parse_cid"]

_RAW, _DAG_PB = 0x55, 0x70
_SHA2_256 = 0x12
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_V0 = re.compile(rf"Qm[{_BASE58}]{{44}}")
_V1 = re.compile(rf"b[a-z2-7]{{20,120}}|z[{_BASE58}]{{20,120}}|f[0-9a-f]{{20,160}}")
# UnixFS types of a file's content: raw and file. A directory has no content of its own.
_UNIXFS_FILES = (0, 2)


@dataclass(frozen=True, slots=True)
class Cid:
    """A content id as it was written, its codec, and its SHA-256; None where it uses another hash."""

    text: str
    codec: int
    sha256: bytes | None

    @property
    def is_file(self) -> bool:
        """Whether the hash is that of the file itself, whose bytes are proven wherever they come from."""
        return self.codec == _RAW and self.sha256 is not None


def parse_cid(text: str) -> Cid | None:
    """Return the content id that `text` spells (v0, or v1 in base32, base58 or base16), or None."""
    if _V0.fullmatch(text):
        data = _base58(text)
        return Cid(text, _DAG_PB, data[2:]) if data is not None and data[:2] == b"\x12\x20" else None
    if not _V1.fullmatch(text):
        return None
    data = _multibase(text)
    try:
        version, data = _varint(data or b"")
        codec, data = _varint(data)
        algorithm, data = _varint(data)
        length, data = _varint(data)
    except ValueError:
        return None
    if version != 1 or length != len(data):
        return None
    return Cid(text, codec, data if algorithm == _SHA2_256 and length == 32 else None)


def block_matches(cid: Cid, block: bytes) -> bool:
    """Tell whether `block` is what `cid` names."""
    return cid.sha256 is not None and hashlib.sha256(block).digest() == cid.sha256


def file_in_block(cid: Cid, block: bytes) -> bytes | None:
    """Return the file that one block holds, or None when it is spread over more, or is no file."""
    if cid.codec != _DAG_PB:
        return block
    try:
        node = _fields(block)
        if any(number == 2 for number, _ in node):
            return None
        unixfs = dict(_fields(next(value for number, value in node if number == 1 and isinstance(value, bytes))))
    except (ValueError, StopIteration):
        return None
    content = unixfs.get(2, b"")
    return content if unixfs.get(1) in _UNIXFS_FILES and isinstance(content, bytes) else None


def _multibase(text: str) -> bytes | None:
    digits = text[1:]
    try:
        if text[0] == "b":
            return base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
        return _base58(digits) if text[0] == "z" else bytes.fromhex(digits)
    except ValueError:
        return None


def _base58(text: str) -> bytes | None:
    value = 0
    for character in text:
        value = value * 58 + _BASE58.index(character)
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _varint(data: bytes) -> tuple[int, bytes]:
    value = 0
    for index, byte in enumerate(data[:9]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, data[index + 1 :]
    raise ValueError


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """Return the (number, value) pairs of a protobuf message. Raises `ValueError`."""
    found: list[tuple[int, int | bytes]] = []
    while data:
        key, data = _varint(data)
        value, data = _varint(data)
        if key & 7 == 0:
            found.append((key >> 3, value))
        elif key & 7 == 2 and value <= len(data):
            found.append((key >> 3, data[:value]))
            data = data[value:]
        else:
            raise ValueError
    return found
