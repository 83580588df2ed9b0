"""The clients of the stores behind fsspec: which servers they may ask, and with whose credentials."""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from m2i2.config import CacheConfig
from m2i2.errors import M2I2Error

_METADATA = {"fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"}
"""Addresses at which clouds hand out a machine's credentials, beside the link-local 169.254.169.254."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv4 addresses as IPv6 networks write them (RFC 6052)."""
_METADATA_PROVIDERS = ("container-role", "iam-role")
"""botocore's names of the providers that ask a metadata service."""


class AttemptFailed(Exception):
    """Why an attempt failed, and whether another one may succeed."""

    def __init__(self, reason: str, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless


def connect(url: str, config: CacheConfig) -> Any:
    """The client of a URL's store, with time-outs and without retries of its own where that is known how."""
    scheme = urlsplit(url).scheme
    try:
        import fsspec

        connection = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options(url, config))
    except ImportError as e:
        raise M2I2Error(f"Shards behind {scheme}:// need a package that is not installed ({e}): pip install '.[remote]'.") from e
    if scheme in ("s3", "s3a"):
        connection.retries = 1
    return connection


def options(url: str, config: CacheConfig) -> dict[str, Any]:
    """What the client of a URL's store is made with."""
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        return _http(url, config)
    if scheme in ("s3", "s3a"):
        return _s3(config)
    if config.cache_metadata:
        return {}
    if scheme in ("gs", "gcs"):
        return _google()
    if scheme in ("abfs", "abfss", "az") and "AZURE_STORAGE_ANON" not in os.environ:
        return {"anon": True}  # account keys and tokens of the environment come before it
    return {}


def _http(url: str, config: CacheConfig) -> dict[str, Any]:
    import aiohttp
    from yarl import URL

    home, hosts = URL(url).origin(), config.cache_hosts

    async def checked(request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
        """Each request of a chain of redirects, the first one too."""
        if request.url.origin() != home:
            if not {request.url.host, f"{request.url.host}:{request.url.port}"} & set(hosts):
                raise AttemptFailed(
                    f"the server redirects to {str(request.url.origin())!r:.200}, another server, which was not asked; if that "
                    f"one is right, give its URL, or name its host in data.cache_hosts",
                    hopeless=True,
                )
            request.headers.popall("Authorization", None)  # a login of ~/.netrc that nobody meant for this chain
        require_address(request.url.host or "", request.url.host or "", hosts)
        return await send(request)

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, *more: Any, **named: Any) -> Any:
            found = await super().resolve(host, *more, **named)
            for place in found:
                require_address(place["host"], host, hosts)
            return found

    async def session(**given: Any) -> Any:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Resolver()), middlewares=(checked,), **given)

    limits = aiohttp.ClientTimeout(total=None, sock_connect=config.cache_timeout, sock_read=config.cache_timeout)
    headers = {"Accept-Encoding": "identity"}
    return {"client_kwargs": {"timeout": limits, "trust_env": True, "headers": headers}, "get_client": session}


def require_address(address: str, host: str, hosts: Collection[str]) -> None:
    """AttemptFailed for an address that only this machine's own services have; ``hosts`` names those that may be asked."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        try:
            ip = ipaddress.IPv4Address(socket.inet_aton(address))  # as systems take it too: 2852039166, 0xa9fea9fe
        except (OSError, ValueError):
            return  # a name; its addresses are checked when it is resolved
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip
    if (ip.is_link_local or str(ip) in _METADATA) and host not in hosts:
        raise AttemptFailed(
            f"{host} is at {ip}, an address of metadata services or of this link alone; if shards are there, name the host "
            f"in data.cache_hosts",
            hopeless=True,
        )


def _s3(config: CacheConfig) -> dict[str, Any]:
    """Credentials of the environment and of ~/.aws, else none; those of the machine where data.cache_metadata says so."""
    once = {"connect_timeout": config.cache_timeout, "read_timeout": config.cache_timeout, "retries": {"total_max_attempts": 1}}
    made: dict[str, Any] = {"config_kwargs": once}
    if config.cache_metadata:
        return made
    from aiobotocore.session import AioSession
    from fsspec.asyn import get_loop, sync
    from fsspec.config import conf

    given = {**conf.get("s3a", {}), **conf.get("s3", {})}  # FSSPEC_S3_ANON, FSSPEC_S3_KEY and so on
    made["session"] = session = AioSession(profile=given.get("profile"))
    providers = session.get_component("credential_provider")
    for name in _METADATA_PROVIDERS:
        providers.remove(name)
    if not {"anon", "key", "username"} & given.keys():
        made["anon"] = sync(get_loop(), session.get_credentials) is None
    return made


def _google() -> dict[str, Any]:
    """Google's credentials of a file, else none; without a file Google's own search would end at the metadata service."""
    from fsspec.config import conf

    if "token" in {**conf.get("gcs", {}), **conf.get("gs", {})}:
        return {}
    settings = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    stored = (settings / "application_default_credentials.json").exists()
    return {"token": "google_default" if stored or os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") else "anon"}
