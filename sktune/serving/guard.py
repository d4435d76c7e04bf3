"""What stands before the routes: the token, and the size of a request's body."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")
"""Paths that need no token: they tell nothing of adapters or texts."""


class Guard:
    """An ASGI application around another one.

    Args:
        app: the one inside.
        most_bytes: of a request's body.
        token: what `Authorization: Bearer` has to say; None: nothing.
    """

    def __init__(self, app: App, most_bytes: int, token: str | None) -> None:
        self._app, self._most_bytes = app, most_bytes
        self._wanted = None if token is None else f"bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._wanted is not None and scope["path"] not in OPEN and not self._knows(headers):
            await _refuse(send, 401, "this server wants a token: Authorization: Bearer TOKEN", [_CHALLENGE])
            return
        body, more = b"", True
        if headers.get(b"content-length", b"0").isdigit():
            more = int(headers.get(b"content-length", b"0")) <= self._most_bytes
        if not more:
            await self._too_large(send)
            return
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # whoever asked is gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most_bytes:
                await self._too_large(send)
                return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        assert self._wanted is not None
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(kind.lower() + b" " + token.strip(), self._wanted)

    async def _too_large(self, send: Send) -> None:
        # What still comes is not read, so the connection is of no further use.
        await _refuse(send, 413, f"the body is larger than {self._most_bytes} bytes (--max-body)", [_CLOSE])


_CHALLENGE = (b"www-authenticate", b"Bearer")
_CLOSE = (b"connection", b"close")


async def _refuse(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": detail}).encode()
    length = (b"content-length", str(len(body)).encode())
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), length],
    }
    start["headers"] += headers  # type: ignore[operator]
    await send(start)
    await send({"type": "http.response.body", "body": body})
