"""Who is calling: client keys of the pool, required beyond loopback unless the settings say otherwise."""

from __future__ import annotations

from buyer.client_keys import PREFIX, ClientKey, find_key
from buyer.pool import Pool
from gateway.envelope import Headers, Problem, Refused

__all__ = ["KEY_BYTES", "key_given", "key_known"]

KEY_BYTES = PREFIX.encode()
# OpenAI's clients send the one, Anthropic's the other.
_CREDENTIALS = (b"authorization", b"x-api-key")
_BEARER = "bearer "


def key_given(headers: Headers, *, required: bool) -> str | None:
    """Return the text of the client key a request came with, or None where it has none and needs none.

    A credential of another kind is ignored where no key is required: clients send placeholders. Raises `Refused` (401)
    where it is missing, or there are two.
    """
    given = {text for name, value in headers if name in _CREDENTIALS if (text := _key_in(value)) is not None}
    if not given:
        if required:
            raise _unauthorized("a client key is required: send `Authorization: Bearer fbx_...`")
        return None
    if len(given) > 1:
        raise _unauthorized("two different client keys were sent")
    return given.pop()


def key_known(pool: Pool, text: str) -> ClientKey:
    """Return the client key of that text. Raises `Refused` (401) for one that is not ours or was revoked, and
    `StoreUnavailable`.
    """
    key = pool.database.read(lambda connection: find_key(connection, text), bare=True)
    if key is None:
        raise _unauthorized("this client key is unknown or revoked")
    return key


def _key_in(value: bytes) -> str | None:
    text = value.decode("latin-1").strip()
    if text[: len(_BEARER)].lower() == _BEARER:
        text = text[len(_BEARER) :].strip()
    return text if text.startswith(PREFIX) else None


def _unauthorized(message: str) -> Refused:
    headers = [(b"www-authenticate", b'Bearer realm="farebox"')]
    return Refused(Problem(401, "invalid_api_key", f"{message}; `farebox key create NAME` makes one", headers=headers))
