"""Servers that send a client elsewhere: to another server, to a machine's own services, for somebody else's credentials."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from m2i2.config import CacheConfig
from m2i2.data.shards.clients import AttemptFailed, options, require_address
from m2i2.data.shards.storage import Unavailable
from m2i2.data.shards.transfer import Remote
from m2i2.errors import M2I2Error

CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_", "CLOUDSDK_", "FSSPEC_", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


class Server:
    """An HTTP server on 127.0.0.1 that sends every request to ``location``, or answers it; it keeps what it was asked."""

    def __init__(self, location: str = "") -> None:
        asked: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                asked.append(dict(self.headers))
                content = b"content"
                if location and not self.path.startswith("/there"):
                    self.send_response(302)
                    self.send_header("Location", location)
                    content = b""
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @contextmanager
    def running(self) -> Iterator["Server"]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, and an environment without them."""
    for name in list(os.environ):
        if name.startswith(CREDENTIALS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def content(url: str, **more: Any) -> bytes:
    return Remote(url, CacheConfig(cache_attempts=1, cache_timeout=10, **more)).content("index.json", 99)


@pytest.fixture
def target() -> Iterator[Server]:
    with Server().running() as server:
        yield server


def test_a_redirect_to_another_server_is_not_followed(target: Server) -> None:
    for location in (f"http://127.0.0.1:{target.port}/there", f"//localhost:{target.port}/x", f"https://127.0.0.1:{target.port}/x"):
        with (
            Server(location).running() as server,
            pytest.raises(Unavailable, match=r"redirects to .* name its host in data\.cache_hosts"),
        ):
            content(f"http://127.0.0.1:{server.port}/data")
    assert not target.asked


def test_a_redirect_within_a_server_and_to_a_named_host_is_followed(target: Server) -> None:
    with Server("/there/index.json").running() as server:
        assert content(f"http://127.0.0.1:{server.port}/data") == b"content"
    for named in (f"127.0.0.1:{target.port}", "127.0.0.1"):
        with Server(f"http://127.0.0.1:{target.port}/there").running() as server:
            assert content(f"http://127.0.0.1:{server.port}/data", cache_hosts=(named,)) == b"content"
    assert len(target.asked) == 2


def test_no_login_of_another_host_goes_anywhere(target: Server, home: Path) -> None:
    (home / ".netrc").write_text("machine 127.0.0.1 login me password first\nmachine localhost login me password second\n")
    (home / ".netrc").chmod(0o600)
    with Server(f"http://localhost:{target.port}/there").running() as server:
        assert content(f"http://127.0.0.1:{server.port}/data", cache_hosts=("localhost",)) == b"content"
        assert "Authorization" in server.asked[0], "the login of the server that was asked"
    assert "Authorization" not in target.asked[0]


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_addresses_of_a_machines_own_services_are_refused(address: str) -> None:
    with pytest.raises(AttemptFailed, match=r"metadata services .* data\.cache_hosts"):
        require_address(address, "host", ())
    require_address(address, "host", ("host",))
    with pytest.raises(M2I2Error, match=r"an address of metadata services|without '::'"):
        content(f"http://{f'[{address}]' if ':' in address else address}:1/data")


@pytest.mark.parametrize("host", ["rebound.example", "2852039166", "0xa9fea9fe"])
def test_a_name_that_leads_to_such_an_address_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Unavailable, match=r"is at 169\.254\.169\.254, an address of metadata services"):
        content(f"http://{host}/data")


def test_ordinary_addresses_are_asked() -> None:
    for address in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "::1", "a.name"):
        require_address(address, "host", ())


def methods(made: dict[str, Any]) -> list[str]:
    """Where an S3 client would look for credentials."""
    return [provider.METHOD for provider in made["session"].get_component("credential_provider").providers]


def test_s3_is_asked_with_credentials_that_were_given_or_without_any(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.2/")
    made = options("s3://bucket/a", CacheConfig())
    assert made["anon"] is True
    assert not {"iam-role", "container-role"} & set(methods(made)) and {"env", "shared-credentials-file"} <= set(methods(made))
    assert "session" not in options("s3://bucket/a", CacheConfig(cache_metadata=True)), "as the machine is set up"
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert options("s3://bucket/a", CacheConfig())["anon"] is False
    (home / ".aws" / "credentials").unlink()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert options("s3://bucket/a", CacheConfig())["anon"] is False


def test_other_stores_are_asked_with_credentials_that_were_given_or_without_any(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CacheConfig()
    assert options("gs://bucket/a", config) == {"token": "anon"}
    assert options("abfs://container/a", config) == {"anon": True}
    assert options("gs://bucket/a", CacheConfig(cache_metadata=True)) == {}
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(home / "key.json"))
    assert options("gs://bucket/a", config) == {"token": "google_default"}
    monkeypatch.setenv("AZURE_STORAGE_ANON", "false")
    assert options("abfs://container/a", config) == {}
