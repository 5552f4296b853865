"""A ray cluster: joined without a word of ray's on the terminal, and counted."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from fewstep.errors import UserError

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}  # fmt: skip
"""Variables that silence ray, and bound how long it tries to reach a cluster that is not there."""


@contextlib.contextmanager
def join_cluster(address: str = "") -> Iterator[Any]:
    """Yields the module `ray`, connected: to a cluster that this process has joined already, else to that of an
    address, of $RAY_ADDRESS or of this machine, else to one that is started here and ended afterwards.

    Raises UserError where ray is not installed, or no cluster answers.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--engine ray needs ray ({error}); install it with: pip install 'fewstep[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    _silence(ray)
    try:
        ray.init(address or None, logging_level=logging.CRITICAL, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"no ray cluster can be joined at {where} ({said}); start one with `ray start --head`, of the same "
            "versions of ray and Python, and give its address with --ray-address"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


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
