"""FAREBOX_ADMIN_TOKEN: guards the admin plane, and must be set where other machines can reach it."""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.admin_token import ADMIN_TOKEN_VARIABLE, carries_token, read_admin_token
from gateway.admin import HEALTH_PATHS
from gateway.client import Client
from gateway.config import Listen
from gateway.envelope import Problem

__all__ = ["TokenCheck", "admin_token"]


def admin_token(listen: Listen) -> str | None:
    """Return the token that is set, or None for none. Raises `ConfigInvalid` for a weak one, or where one must be."""
    return read_admin_token(os.environ, setting="admin_listen", address=listen.text, is_loopback=listen.is_loopback)


class TokenCheck:
    """Wants `Authorization: Bearer <token>` for everything but health; without a token, nothing."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS or self._may_see(scope):
            await self._app(scope, receive, send)
            return
        problem = Problem(
            401,
            "unauthorized",
            f"authorization: send Bearer and the value of {ADMIN_TOKEN_VARIABLE}",
            headers=[(b"www-authenticate", b'Bearer realm="farebox admin"')],
        )
        await Client(receive, send).problem(scope["path"], problem)

    def _may_see(self, scope: Scope) -> bool:
        return self._token is None or carries_token(scope["headers"], self._token)
