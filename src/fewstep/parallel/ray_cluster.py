"""A ray cluster: joined without a word of ray's on the terminal, and counted."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from fewstep.errors import UserError

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
"""Variables that silence ray."""
_CONNECT = 10.0
"""Seconds to reach the address of a cluster."""


@contextlib.contextmanager
def join_cluster(address: str = "") -> Iterator[Any]:
    """Yields the module `ray`, connected: to a cluster that this process has joined already, else to that of an
    address or of $RAY_ADDRESS, else to one that is started here and ended afterwards.

    Raises UserError where ray is not installed, or no cluster answers.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--executor ray needs ray ({error}); install it with: pip install 'fewstep[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "") or "local"
    if address not in ("local", "auto"):
        _check_reachable(address)
    # Workers of others are as nice as their cluster says; one's own need not be.
    own: Any = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}} if address == "local" else {}
    _silence(ray)
    ends = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, logging_level=logging.CRITICAL, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _refuse(address, error) from error
    with contextlib.suppress(ValueError, TypeError):  # in another thread, or where it was not Python's
        signal.signal(signal.SIGTERM, ends)  # ray would print a trace
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises UserError where nobody listens there: ray would try for a minute, and then end the process."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise UserError(f"ray_address is {address}; give HOST:PORT of the cluster itself, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise _refuse(address, error) from error


def _refuse(address: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:200]
    return UserError(
        f"no ray cluster can be joined at {address} ({said}); start one with `ray start --head`, of the same versions "
        "of ray and Python, and give its address with --ray-address"
    )


def _silence(ray: Any) -> None:
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # What raylets say of machines that go is printed by a thread of the driver, which has no option for it.
    with contextlib.suppress(AttributeError):
        ray._private.worker._worker_logs_enabled = False


def choose_gpus(ray: Any, asked: float, device: str) -> float:
    """Returns how many GPUs an actor takes. Raises UserError where the cluster has none, and they are needed."""
    there = ray.cluster_resources().get("GPU", 0)
    if not there and (asked or device.startswith("cuda")):
        raise UserError("the ray cluster has no GPU; leave --gpus-per-actor out and give --device cpu, or add machines")
    return asked or (1.0 if there and device != "cpu" else 0.0)


def describe_crew(ray: Any, actors: int, gpus: float, readers: int = 0) -> str:
    """Says who works, and on how many machines."""
    taken = f"{gpus:g} GPUs" if gpus else "one CPU"
    helped = f", {readers} readers" if readers else ""
    return f"ray: {actors} actors of {taken} each{helped}, {sum(node['Alive'] for node in ray.nodes())} machines"


def count_actors(ray: Any, gpus: float, spared: int) -> int:
    """Counts the actors of one CPU and so many GPUs that the machines of the cluster have room for, beside `spared`
    further CPUs. Raises UserError where there is no room for one."""
    count = 0
    for node in ray.nodes():
        room = node["Resources"] if node["Alive"] else {}
        cpus = int(room.get("CPU", 0))
        count += min(cpus, int(room.get("GPU", 0) / gpus + 1e-6)) if gpus else cpus
    left = count if gpus else count - spared
    if not count:
        raise UserError(
            f"no machine of the ray cluster has a CPU and {gpus:g} GPUs for an actor; give fewer with "
            "--gpus-per-actor, or say with --actors how many machines to wait for"
        )
    return max(1, left)
