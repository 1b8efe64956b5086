"""Multipart forms: their one `model` field, read so that no other parser can find another.

Servers differ in what they forgive: a parameter that is there twice or with a space before its `=`, a character set, a
line ended by a bare line feed or folded, contents that are encoded once more. So only the plain form that clients write
is read, and any other is refused rather than priced. Source: RFC 7578.
"""

from __future__ import annotations

import re
from email.message import Message
from urllib.parse import unquote_plus

from contracts.errors import MalformedMessage
from seller.limits import FORM_PARTS_MAX

__all__ = ["check_charset", "check_no_form", "form_model", "is_form"]

_LINE_END = re.compile(rb"[\r\n]")
# Every spelling in which a server could read a parameter that ends in "name", and what follows it.
_NAMES = re.compile(r'(file)?(name[\s*0-9]*=)("[^"\\]*"|[\w.\[\]-]+)?', re.ASCII | re.IGNORECASE)
_ENCODINGS = (b"7bit", b"8bit", b"binary")
_CHARSETS = ("utf-8", "utf8")


def is_form(content_type: str) -> bool:
    """Tell whether a body of this content type is a multipart form."""
    return content_type.strip().lower().startswith("multipart/")


def check_charset(content_type: str) -> None:
    """Raise `MalformedMessage` for a character set in which another text could be read."""
    if "charset" not in content_type.lower():
        return
    if any(charset.lower() not in _CHARSETS for charset in _parameters(content_type, "charset")):
        raise MalformedMessage("content-type: send the body in UTF-8; its model decides the price")


def check_no_form(content_type: str, body: bytes) -> None:
    """Raise `MalformedMessage` for JSON that is sent as a URL-encoded form and could be read as one with a model."""
    if not content_type.strip().lower().startswith("application/x-www-form-urlencoded"):
        return
    names = (unquote_plus(field.partition("=")[0]) for field in re.split("[&;]", body.decode("latin-1")))
    if any(name.strip().casefold() == "model" for name in names):
        raise MalformedMessage("content-type: the body is JSON, send it as application/json")


def form_model(content_type: str, body: bytes) -> str | None:
    """Return the form's `model`, or None when it has none. Raises `MalformedMessage` for a form that is not plain."""
    boundaries = _parameters(content_type, "boundary")
    if len(boundaries) != 1 or not 0 < len(boundaries[0]) <= 70 or not boundaries[0].isascii():
        raise MalformedMessage("content-type: a multipart form needs a boundary")
    opening = b"--" + boundaries[0].encode()
    if not body.startswith(opening + b"\r\n") or not body.rstrip(b"\r\n").endswith(b"\r\n" + opening + b"--"):
        raise MalformedMessage("body: the multipart form does not begin and end with its boundary")
    parts = body[len(opening) :].split(b"\r\n" + opening, FORM_PARTS_MAX)
    if len(parts) > FORM_PARTS_MAX:
        raise MalformedMessage(f"body: more than {FORM_PARTS_MAX - 1} form fields")
    models = [content for name, content in map(_field, parts[:-1]) if name.casefold() == "model"]
    if len(models) > 1:
        raise MalformedMessage("model: is set twice")
    try:
        return models[0].decode("utf-8") if models else None
    except UnicodeDecodeError:
        raise MalformedMessage("model: is not UTF-8 text") from None


def _field(part: bytes) -> tuple[str, bytes]:
    """Return name and content of one part."""
    head, found, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not found or not part.startswith(b"\r\n"):
        raise MalformedMessage("body: a form field has no content-disposition")
    dispositions = []
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or name != name.strip() or _LINE_END.search(line):
            raise MalformedMessage("body: a form field has a header that is no plain line")
        if name.lower() == b"content-disposition":
            dispositions.append(value.decode("latin-1"))
        elif name.lower() == b"content-transfer-encoding" and value.strip().lower() not in _ENCODINGS:
            raise MalformedMessage("body: send form fields unencoded")
    if len(dispositions) != 1:
        raise MalformedMessage("body: a form field has no content-disposition")
    return _name(dispositions[0]), content


def _name(disposition: str) -> str:
    names = [found for found in _NAMES.finditer(disposition) if not found[1]]
    if len(names) != 1 or names[0][2].lower() != "name=" or not names[0][3]:
        raise MalformedMessage("body: a form field needs exactly one plain name")
    return names[0][3].strip('"')


def _parameters(header: str, name: str) -> list[str]:
    """Return every value that some parser could take for a parameter; "" for one that is not plain text."""
    message = Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found: list[tuple[str, object]] = list(message.get_params(failobj=[]))
    return [value if isinstance(value, str) else "" for key, value in found if key.strip().lower() == name]
