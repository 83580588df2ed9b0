"""Files of a URL, fetched through fsspec: whole, checked, within time-outs, in a bounded number of attempts."""

import hashlib
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from m2i2.config import CacheConfig
from m2i2.data.shards.clients import AttemptFailed, connect
from m2i2.data.shards.storage import Unavailable
from m2i2.errors import M2I2Error
from m2i2.terminal import say

SCHEMES = ("http", "https", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "hf", "hdfs", "webhdfs", "ftp", "sftp")
"""Stores of files. Not: schemes by which fsspec runs, unpacks, caches or refers to something else, or reads this machine."""
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A name that means itself in a URL of any store."""
_BLOCK = 1 << 20
_RANGE = 1 << 24
"""Bytes of a request to a store that is read in ranges (all but HTTP)."""
_SLOWEST = 100_000
"""Bytes per second; an attempt that is slower by more than the time-out has failed."""
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds after the first failed attempt, doubled after each further one."""


def require_url(url: str) -> None:
    """M2I2Error for a URL that is not simply a folder in one of the known stores."""
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise M2I2Error(f"{url!r:.200} is not a URL ({e}).") from e
    if parts.password is not None or (parts.username is not None and parts.scheme in ("http", "https")):
        raise M2I2Error(
            f"The {parts.scheme} URL of the shards carries credentials, which would be stored with the run; put them where "
            f"{parts.scheme} clients look (environment, ~/.netrc, ~/.aws)."
        )
    if "::" in url or url.partition("://")[0] not in SCHEMES:
        raise M2I2Error(
            f"Shards cannot be read from {url!r:.200}: one scheme of {', '.join(SCHEMES)} is taken, without '::'. "
            f"Give a folder of this machine as its plain path."
        )
    if not parts.netloc or parts.query or parts.fragment or re.search(r"[\s?#*\[\]\\]", url):
        raise M2I2Error(f"{url!r:.200} is not a URL of a folder; give {parts.scheme}://PLACE/FOLDER, without query or wildcard.")


class Remote:
    """A folder behind a URL. It may be pickled and forked: every process connects for itself."""

    def __init__(self, url: str, config: CacheConfig) -> None:
        require_url(url)
        self.url, self.attempts, self.timeout = url.rstrip("/"), config.cache_attempts, config.cache_timeout
        self._config = config
        self._connections: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_connections": {}}

    def fetch(self, file: str, descriptor: int, limit: int, sha256: str, attempts: int | None = None) -> int:
        """Write a file of the folder, whose sha256 is known, into ``descriptor`` and return its size, at most ``limit``.

        `Unavailable`, naming the URL, after the last attempt.
        """

        def once() -> int:
            digest, size = hashlib.sha256(), 0
            for block in self._blocks(file, limit):
                os.pwrite(descriptor, block, size)
                digest.update(block)
                size += len(block)
            if digest.hexdigest() != sha256:
                raise AttemptFailed(f"the {size} bytes that came do not match the hash of the index")
            os.ftruncate(descriptor, size)
            return size

        return self._attempted(file, once, attempts or self.attempts)

    def content(self, file: str, limit: int) -> bytes:
        """A file of the folder, of at most ``limit`` bytes."""
        return self._attempted(file, lambda: b"".join(self._blocks(file, limit)), self.attempts)

    def _attempted(self, file: str, once: Callable[[], Any], attempts: int) -> Any:
        for attempt in range(1, attempts + 1):
            try:
                return once()
            except AttemptFailed as e:
                if e.hopeless or attempt == attempts:
                    times = "" if attempt == 1 else f" after {attempt} attempts"
                    raise Unavailable(
                        f"{self.url}/{file} cannot be fetched{times}: {e}. Check the URL, the network and the store; "
                        f"a run that is started again goes on from its newest checkpoint."
                    ) from e
                pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** (attempt - 1)) * random.uniform(0.7, 1.0)
                say(
                    f"{self.url}/{file}: {e}; attempt {attempt} of {attempts} failed, the next in {pause:.1f} s.",
                    file=sys.stderr,
                    flush=True,
                )
                time.sleep(pause)
        raise AssertionError

    def _blocks(self, file: str, limit: int) -> Iterator[bytes]:
        """The content of a file in blocks; AttemptFailed where it does not come, comes too slowly, or is too long."""
        end, size = time.monotonic() + self.timeout + limit / _SLOWEST, 0
        try:
            with self._open(f"{self.url}/{file}", limit) as source:
                while block := source.read(_BLOCK):
                    size += len(block)
                    if size > limit:
                        raise AttemptFailed(f"more bytes came than the {limit} there should be")
                    if time.monotonic() > end:
                        raise AttemptFailed(f"{size} bytes came in {self.timeout + limit / _SLOWEST:.0f} s, which is too slow")
                    yield block
        except (AttemptFailed, M2I2Error):
            raise
        except Exception as e:  # the stores' clients raise almost anything
            raise _failure(e) from e

    def _open(self, url: str, limit: int) -> Any:
        connection = self._connections.get(os.getpid())
        if connection is None:
            connection = self._connections[os.getpid()] = connect(self.url, self._config)
        if urlsplit(url).scheme in ("http", "https"):
            return connection.open(url, "rb", block_size=0, size=limit)  # one stream; no HEAD before it
        return connection.open(url, "rb", block_size=_RANGE, cache_type="readahead")


def _failure(e: Exception) -> AttemptFailed:
    """What an error of a store's client means."""
    status = getattr(e, "status", None)
    if isinstance(e, FileNotFoundError):
        return AttemptFailed("it is not there", hopeless=True)
    if isinstance(e, PermissionError):
        return AttemptFailed(f"access was denied ({_words(e)})", hopeless=True)
    if isinstance(status, int):
        hopeless = 400 <= status < 500 and status not in (408, 425, 429)
        return AttemptFailed(f"the server answered {status} {getattr(e, 'message', '')}".rstrip(), hopeless)
    return AttemptFailed(_words(e))


def _words(e: Exception) -> str:
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text:.200}" if text else type(e).__name__
