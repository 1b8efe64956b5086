"""Keeps secrets out of logs: endpoints with tokens in their URL, signatures, payments, passwords."""

from __future__ import annotations

import logging
import re
import sys

__all__ = ["RedactingFormatter", "log_to_stderr", "redacted"]

_MASK = "***"
_HEADERS = "authorization|cookie|payment-signature|x-payment|proxy-authorization"
_WORDS = "password|secret|token|api[_-]?key|private[_-]?key"


def _rule(pattern: str, replacement: str = _MASK) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), replacement


_RULES = (
    # Of a URL only scheme, host and port: user, password, path and query of an RPC endpoint may be its key.
    _rule(r"\b([a-z][a-z0-9+.-]*://)(?:[^\s/@'\"]*@)?([^\s/?#'\"<>]+)[/?#][^\s'\"<>)]*", rf"\1\2/{_MASK}"),
    _rule(r"\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]*@", rf"\1{_MASK}@"),
    _rule(rf"\b({_HEADERS})(['\"]?\s*[:=,]\s*b?['\"]?)[^\r\n'\"]+", rf"\1\2{_MASK}"),
    _rule(r"\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}", rf"\1 {_MASK}"),
    _rule(rf"\b({_WORDS})(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+", rf"\1\2{_MASK}"),
    # A signature is 65 bytes; hashes, nonces and addresses are shorter, and public.
    _rule(r"\b(?:0x)?[0-9a-f]{128,}"),
    # A key file's content: 32 bytes without the 0x that hashes carry.
    _rule(r"(?<![0-9a-z])[0-9a-f]{64}(?![0-9a-z])"),
    # A payment header, or any other long base64.
    _rule(r"[a-z0-9+/_-]{160,}={0,2}"),
)


def redacted(text: str) -> str:
    """Return `text` with everything that looks like a secret masked."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Formats as its base does, tracebacks included, and masks what looks like a secret.

    What others say is in messages, too: it makes no line of its own, and steers no terminal that shows the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line as it may be read by anybody who reads logs."""
        return "\n".join(map(_one_line, redacted(super().format(record)).split("\n")))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without what follows it: a traceback, whose lines stay lines."""
        return _one_line(super().formatMessage(record))


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def log_to_stderr(level: int) -> None:
    """Let this process log to stderr from `level` up, through a `RedactingFormatter`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)
