"""Where a hub's redirects may lead: no way from a hub on the internet to hosts inside the cluster or the network.

A redirect never leads from TLS to plain HTTP, and never carries credentials. The address of the hub is the platform
team's choice. If that is itself an internal host, its redirects may lead to other internal hosts, for example to an
object store, but never to the node itself or to link-local addresses, where cloud providers hand out credentials.

A name may resolve to an internal address. This shows only once the connection stands, so one GET request may reach an
internal host, but its answer is not read. With a proxy in the environment, the proxy decides which hosts it reaches.
"""

from __future__ import annotations

import re
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies

import httpx

from qwen_operator.checkpoints.hubs import is_address
from qwen_runtime.checkpoints.reading import kind

_INTERNAL_NAMES = ("local", "localhost", "internal", "intranet", "lan", "home", "corp", "private", "svc", "arpa", "pod")
# Resolvers read a host whose last part is a number as an IPv4 address, in several spellings.
_NUMERIC = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)\.?", re.ASCII | re.IGNORECASE)
# Addresses that stand for IPv4 addresses: NAT64, 6to4 and Teredo.
_TRANSLATED = tuple(IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


class Reach(IntEnum):
    """How far a host is: on the internet, inside the cluster or network, or on the node or its link."""

    PUBLIC = 0
    INTERNAL = 1
    LOCAL = 2


def redirect_fault(url: str, target: str, base: str) -> str | None:
    """Why a redirect from `url` to `target` is not followed; None if it may be. `base` is the hub's address."""
    if not is_address(target):
        return "an address that is not http or https, which is not allowed"
    parts = urlsplit(target)
    host = kind(parts.hostname)
    if url.startswith("https:") and parts.scheme != "https":
        return f"{host} without TLS, which is not allowed"
    if parts.username is not None or parts.password is not None:
        return f"{host} with credentials, which is not allowed"
    return _reach_fault(parts.hostname or "", base)


def reached_fault(response: httpx.Response, base: str) -> str | None:
    """Why the answer to a redirected request is not read, by the address that it comes from; None if it may be."""
    stream = response.extensions.get("network_stream")
    peer = stream.get_extra_info("server_addr") if stream is not None else None
    return peer_fault(str(peer[0]) if peer else "", str(response.url), base)


def peer_fault(peer: str, url: str, base: str) -> str | None:
    """Why the answer from the address `peer` to a redirected request for `url` is not read; None if it may be."""
    if not peer or getproxies() or urlsplit(url).hostname == urlsplit(base).hostname:
        return None
    return _reach_fault(peer, base)


def _reach_fault(host: str, base: str) -> str | None:
    hub = urlsplit(base).hostname or ""
    if host == hub or (reach := reach_of(host)) is Reach.PUBLIC:
        return None
    allowed = reach_of(hub)
    if reach is Reach.INTERNAL and allowed >= Reach.INTERNAL:
        return None
    if reach is Reach.LOCAL and allowed is Reach.LOCAL:
        return None
    where = "a host inside the network" if reach is Reach.INTERNAL else "the node itself or its link"
    return f"{kind(host)}, which is not allowed: it is {where}"


def reach_of(host: str) -> Reach:
    """How far the host of a URL is. What cannot be told counts as LOCAL."""
    name = host.rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        if _NUMERIC.fullmatch(name) or ":" in name or "%" in name:
            return Reach.LOCAL
        last = name.rpartition(".")[2]
        if last == "localhost" or not name:
            return Reach.LOCAL
        return Reach.INTERNAL if last in _INTERNAL_NAMES or "." not in name else Reach.PUBLIC
    return _reach_of_address(address)


def _reach_of_address(address: IPv4Address | IPv6Address) -> Reach:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return _reach_of_address(address.ipv4_mapped)
        if address.scope_id is not None or any(address in network for network in _TRANSLATED):
            return Reach.LOCAL
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return Reach.LOCAL
    return Reach.PUBLIC if address.is_global else Reach.INTERNAL
