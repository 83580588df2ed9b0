"""Servers on loopback that hand out a folder of shards: one of HTTP that misbehaves on demand, and one of S3."""

import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


class ShardServer:
    """An HTTP server of ``root``. ``faults[file]`` lists what the next requests for a file meet, the one with a * for good."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: Counter[str] = Counter()
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.released = threading.Event()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"shards": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/data"

    def fault_of(self, file: str) -> str:
        """Count a request for the file; what it meets, or nothing."""
        with self._lock:
            self.requests[file] += 1
            waiting = self.faults[file]
            if not waiting:
                return ""
            return waiting[0][:-1] if waiting[0].endswith("*") else waiting.pop(0)

    def __enter__(self) -> "ShardServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    shards: ShardServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        file = self.path.removeprefix("/data/")
        fault = self.shards.fault_of(file)
        if fault == "slow":
            time.sleep(0.5)
        if fault.isdigit():
            return self.send_error(int(fault))
        try:
            content = (self.shards.root / file).read_bytes()
        except FileNotFoundError:
            return self.send_error(404)
        half = len(content) // 2
        if fault == "wrong bytes":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        elif fault == "too short":
            content = content[:half]
        elif fault == "too long":
            content += bytes(1 << 22)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault in ("stall", "reset", "cut off"):
            self.wfile.write(content[:half])
            self.wfile.flush()
            if fault == "stall":
                self.shards.released.wait(60)
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return None
        try:
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the client had enough
        return None


@contextmanager
def s3_server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """moto's S3 server with the files of ``root``, named to clients by the usual environment; gives the URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        store = boto3.client("s3")
        bucket = f"bucket-{port}"  # moto's servers in one process share their buckets
        store.create_bucket(Bucket=bucket)
        for path in root.iterdir():
            store.upload_file(str(path), bucket, f"a/folder/{path.name}")
        yield f"s3://{bucket}/a/folder"
    finally:
        server.stop()
