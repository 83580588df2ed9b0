"""The app's door: which requests reach the page at all.

A server on 127.0.0.1 is reached by every program of the machine, and by every web page that its users' browsers have open. A
request passes where it names this server as its host, comes from this server's own page, asks for something that the page
needs, carries the token where there is one, and stays within the limits of its client and of the folder of uploads.
"""

import asyncio
import hmac
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_API = "/gradio_api/"
_PAGES = ("/", "/config", "/config/", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css")
_FOLDERS = ("/assets/", "/static/", "/svelte/", *(f"{_API}{name}" for name in ("file=", "heartbeat/", "queue/")))
_CALLS = tuple(
    f"{_API}{name}"
    for name in ("startup-events", "info", "app_id", "theme.css", "upload", "upload_progress", "cancel", "run/predict")
)
"""What the page asks for. Everything else that Gradio serves, such as its documents of the interface, is not found."""
_UPLOAD = f"{_API}upload"
_FORM = 1 << 16
"""Bytes of a request beside an uploaded file; a question has fewer."""
_MINUTE = 60.0
_CLIENTS = 10_000
"""Clients and sessions that are remembered at most."""


@dataclass(frozen=True)
class Rules:
    """What the door asks for."""

    folder: Path
    """Of the uploads, the page's pictures and nothing else; files directly in it are unfinished uploads."""
    upload: int
    """Bytes of an upload."""
    uploads: int
    """Bytes of all files in the folder."""
    requests: int
    """Uploads and questions of a client in a minute."""
    token: str = ""
    """That a browser brings once, as /?token=...; empty: none is needed."""
    guesses: int = 10
    """Wrong tokens of an address in a minute."""


class Rate:
    """How often something happened for each of many keys within the last minute."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._seen: dict[str, deque[float]] = {}

    def wait(self, key: str) -> float:
        """Seconds until ``key`` may come again; 0 where it may now."""
        seen = self._recent(key)
        return max(0.0, seen[0] + _MINUTE - time.monotonic()) if len(seen) >= self.most else 0.0

    def note(self, key: str) -> None:
        """Count it once."""
        if key not in self._seen and len(self._seen) >= _CLIENTS:
            self._seen = {other: seen for other in self._seen if (seen := self._recent(other))}
            while len(self._seen) >= _CLIENTS:
                self._seen.pop(next(iter(self._seen)))
        self._seen.setdefault(key, deque(maxlen=self.most)).append(time.monotonic())

    def _recent(self, key: str) -> deque[float]:
        seen = self._seen.get(key, deque())
        while seen and seen[0] < time.monotonic() - _MINUTE:
            seen.popleft()
        return seen


@dataclass
class _Refused(Exception):
    """The answer to a request that does not pass."""

    status: int
    text: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Door:
    """ASGI middleware around the page."""

    def __init__(self, app: Any, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._requests, self._guesses = Rate(rules.requests), Rate(rules.guesses)
        self._sessions: dict[str, None] = {}
        self._coming = 0
        self._one_upload = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        try:
            self._check_place(scope)
            client = self._client(scope)
            if scope["method"] == "POST":
                return await self._post(client, scope, receive, send)
        except _Refused as no:
            return await _answer(send, no)
        return await self.app(scope, receive, send)

    def _check_place(self, scope: Scope) -> None:
        """Host, origin and path."""
        port = scope["server"][1]
        own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if len(hosts) != 1 or hosts[0].lower() not in own:
            raise _Refused(421, f"This server is http://127.0.0.1:{port}/ and answers to no other name.")
        foreign = any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins)
        site = _values(scope, b"sec-fetch-site")
        elsewhere = any(value not in ("same-origin", "none") for value in site)
        if foreign or (elsewhere and not (scope["path"] == "/" and _values(scope, b"sec-fetch-mode") == ["navigate"])):
            raise _Refused(403, "Only the app's own page may send it requests.")
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD", "POST") or not (path in _PAGES + _CALLS or path.startswith(_FOLDERS)):
            raise _Refused(404, "There is nothing here.")

    def _client(self, scope: Scope) -> str:
        """Who asks: a session with the token, else an address."""
        address = str((scope.get("client") or ("?",))[0])
        if address.startswith("127."):  # a program of this machine has 16 million of these to come from
            address = "127.0.0.1"
        if not self.rules.token or scope["path"] == f"{_API}startup-events":  # Gradio itself asks for it at its start
            return address
        name = f"m2i2-{scope['server'][1]}"
        for cookies in _values(scope, b"cookie"):
            for cookie in cookies.split(";"):
                key, _, value = cookie.strip().partition("=")
                if key == name and value in self._sessions:
                    return value
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0] if scope["path"] == "/" else ""
        if wait := self._guesses.wait(address):
            raise _later(wait, "Too many wrong tokens")
        if not hmac.compare_digest(given.encode(), self.rules.token.encode()):
            if given:
                self._guesses.note(address)
            raise _Refused(401, "This app needs its token: open the address that it printed when it started.")
        session = secrets.token_urlsafe(16)
        if len(self._sessions) >= _CLIENTS:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[session] = None
        cookie = f"{name}={session}; Path=/; HttpOnly; SameSite=Strict"
        raise _Refused(303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])

    async def _post(self, client: str, scope: Scope, receive: Receive, send: Send) -> None:
        """An upload or a question: within the client's rate, read whole within its bound, in the room that is left."""
        if wait := self._requests.wait(client):
            raise _later(wait, f"More than {self.rules.requests} uploads and questions in a minute")
        self._requests.note(client)
        upload = scope["path"] == _UPLOAD
        most = (self.rules.upload if upload else 0) + _FORM
        length = _values(scope, b"content-length")
        expected = int(length[0][:18]) if len(length) == 1 and length[0].isdecimal() else most
        if expected > most:
            raise _Refused(413, f"The request has {expected} bytes, more than the {most} that are taken.")
        used = await asyncio.to_thread(_size, self.rules.folder)
        if used + self._coming + expected > self.rules.uploads:
            raise _Refused(
                507, "The app holds as many uploads as it may; they are deleted after a quarter of an hour. Try again then."
            )
        self._coming += expected
        try:
            body = await _body(receive, most)
            if not upload:
                return await self.app(scope, _replay(body, receive), send)
            async with self._one_upload:
                try:
                    await self.app(scope, _replay(body, receive), send)
                finally:
                    await asyncio.to_thread(_clear, self.rules.folder)
        finally:
            self._coming -= expected


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _later(wait: float, why: str) -> _Refused:
    return _Refused(429, f"{why}; try again in {wait:.0f} s.", [(b"retry-after", str(int(wait) + 1).encode())])


async def _body(receive: Receive, most: int) -> bytes:
    """The whole body of a request; refused where it is longer than ``most``, takes over a minute, or the client has gone."""
    parts, size, end = [], 0, time.monotonic() + _MINUTE
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            raise _Refused(408, "The request did not come whole within a minute.") from None
        if message["type"] != "http.request":
            raise _Refused(400, "The request was broken off.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _Refused(413, f"The request has more than the {most} bytes that are taken.")
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it."""
    given = False

    async def once() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _clear(folder: Path) -> None:
    """Remove what an upload that failed has left; one that succeeded has been moved into a folder of its own."""
    for path in folder.iterdir():
        if path.is_file():
            path.unlink(missing_ok=True)


async def _answer(send: Send, no: _Refused) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *no.headers]
    await send({"type": "http.response.start", "status": no.status, "headers": headers})
    await send({"type": "http.response.body", "body": (no.text + "\n").encode()})
