"""A ray cluster of two machines that are none, of one CPU each, and a bucket that both see."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest

from cluster import bucket

QUICK = {
    "worker_niceness": 0, "health_check_initial_delay_ms": 0, "health_check_period_ms": 300,
    "health_check_failure_threshold": 4, "prestart_worker_first_driver": False,
}  # fmt: skip
MACHINE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Machines:
    """The second machine may be taken away and brought back."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {**MACHINE, "include_dashboard": False, "_system_config": QUICK}
        with own_signals():
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
            self.address, self._second = self.cluster.address, self.cluster.add_node(**MACHINE)

    def take_away(self):
        self.cluster.remove_node(self._second, allow_graceful=False)

    def bring_back(self):
        with own_signals():
            self._second = self.cluster.add_node(**MACHINE)


@contextlib.contextmanager
def own_signals():
    """A node that starts in this process answers SIGTERM from then on, and tests after these would be asked less."""
    ends = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, ends)


@pytest.fixture(scope="session")
def machines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    known = folder / "path" / "bucket-0.dist-info"  # by which every process knows the file system
    known.mkdir(parents=True)
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: bucket\nVersion: 0\n")
    (known / "entry_points.txt").write_text("[fsspec.specs]\nbucket = cluster.bucket:BucketFileSystem\n")
    fsspec.register_implementation("bucket", bucket.BucketFileSystem, clobber=True)
    (folder / "bucket").mkdir()
    path = [str(known.parent), str(Path(__file__).parents[1]), *(each for each in sys.path if each)]
    before, sockets = dict(os.environ), tempfile.mkdtemp(prefix="r", dir="/tmp")  # a socket's name must be short
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(path), bucket.ROOT: str(folder / "bucket"), bucket.DELAY: "0.3",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": sockets, "FEWSTEP_CACHE": str(folder / "cache"),
    }  # fmt: skip
    there = Machines()
    yield there
    there.cluster.shutdown()
    shutil.rmtree(sockets, ignore_errors=True)
    os.environ.clear()
    os.environ.update(before)
