"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Bounds on what strangers may ask for."""

    token: str = ""
    """Without it nothing but /healthz is answered; none: everybody may ask."""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names under which requests may come, so that no page elsewhere reaches a server here by a name of its own; `*`:
    any."""
    body_bytes: int = 16 << 20
    """Of a request that brings a picture."""
    json_bytes: int = 64 << 10
    """Of one that does not."""
    body_seconds: float = 20.0
    """That a request's body may take to arrive, from its head to its end."""
    header_seconds: float = 10.0
    """That its head may take."""
    connections: int = 512
    """At a time."""
    pictures: int = 8
    """Of one request."""
    prompt_letters: int = 2000
    """Of a prompt, and of a negative one."""
    image_pixels: int = 16_000_000
    """Of a picture that is sent."""
    work: int = 32 * 512 * 512 * 8
    """Pixels × pictures × steps of one request."""
    sockets: int = 32
    """Pages that are open at a time."""
