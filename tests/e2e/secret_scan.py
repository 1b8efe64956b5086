"""Looks for a secret in everything a process holds: every readable page of its memory, and its environment."""

from __future__ import annotations

import base64
from pathlib import Path

# Pages are read in pieces; two neighbours overlap by more than the longest spelling, so that none is cut in two.
_PIECE_BYTES = 8 * 1024 * 1024
_OVERLAP_BYTES = 256


def spellings(secret: bytes) -> dict[str, bytes]:
    """Return the ways `secret` may be written. `0x…` forms contain the bare hex, so they need no spelling of theirs."""
    return {
        "raw": secret,
        "raw little-endian": secret[::-1],
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "base64": base64.b64encode(secret).rstrip(b"="),
        "base64url": base64.urlsafe_b64encode(secret).rstrip(b"="),
    }


def found_in_process(pid: int, secret: bytes) -> dict[str, str]:
    """Return where `secret` is in the process and its descendants: spelling -> place. Linux only."""
    found: dict[str, str] = {}
    for each in [pid, *_descendants(pid)]:
        environment = Path(f"/proc/{each}/environ").read_bytes()
        found |= {name: f"environment of {each}" for name, word in spellings(secret).items() if word in environment}
        found |= _found_in_memory(each, secret)
    return found


def readable_bytes(pid: int) -> int:
    """Return how many bytes of memory a scan of the process covers."""
    return sum(end - start for start, end, _ in _readable_maps(pid))


def _found_in_memory(pid: int, secret: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    words = spellings(secret)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end, name in _readable_maps(pid):
            position = start
            while position < end:
                try:
                    memory.seek(position)
                    piece = memory.read(min(_PIECE_BYTES, end - position))
                except OSError:
                    # The kernel's own pages ([vvar]) and pages unmapped since cannot be read by anybody.
                    break
                if not piece:
                    break
                found |= {word: f"memory of {pid}, {name}" for word, data in words.items() if data in piece}
                position += len(piece) if position + len(piece) >= end else max(1, len(piece) - _OVERLAP_BYTES)
    return found


def _readable_maps(pid: int) -> list[tuple[int, int, str]]:
    maps = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, rights, _offset, _device, _inode, *name = line.split(maxsplit=5)
        if rights.startswith("r") and name not in (["[vvar]"], ["[vsyscall]"], ["[vvar_vclock]"]):
            start, end = (int(text, 16) for text in span.split("-"))
            maps.append((start, end, name[0] if name else "anonymous"))
    return maps


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found: list[int] = []
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        found += generation
    return found
