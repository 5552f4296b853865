"""The bounds of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Bounds on what clients may ask for."""

    token: str = ""
    """Secret that every request but /healthz needs; empty: none is needed."""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Host names that requests may use, so that a foreign page cannot reach this server by a name of its own; `*`
    allows any."""
    origins: tuple[str, ...] = ()
    """Origins, as `http://localhost:3000`, whose pages may ask; `*` allows any. The server's own page always may."""
    body_bytes: int = 16 << 20
    """Most bytes of a body that holds a picture."""
    json_bytes: int = 64 << 10
    """Bounds the bytes of any other body."""
    body_seconds: float = 20.0
    """Seconds that a body may take to arrive."""
    header_seconds: float = 10.0
    """Seconds that a request's head may take to arrive."""
    unread_seconds: float = 30.0
    """Seconds in which a client must read something of its answer."""
    read_seconds: float = 10.0
    """Seconds in which a body must be parsed and its pictures decoded."""
    memory_bytes: int = 512 << 20
    """Most bytes of all bodies, decoded pictures and answers that are in flight."""
    connections: int = 512
    """Bounds the connections at a time."""
    address_connections: int = 256
    """Bounds the connections at a time from one address."""
    pictures: int = 8
    """Bounds the pictures of one request."""
    prompt_letters: int = 2000
    """Bounds the characters of a prompt, and of a negative one."""
    image_pixels: int = 16_000_000
    """Most pixels of a picture that a client sends."""
    work: int = 32 * 512 * 512 * 8
    """Bounds pixels × pictures × steps of one request."""
    sockets: int = 32
    """Most pages that are open at a time."""
    alone: bool = True
    """Whether all requests of a client come to this server. Else what it alone would know, pictures behind links and
    how far it has come, is refused."""
