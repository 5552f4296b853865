"""Work shared out by ray among machines that go and come: the same bytes, nothing lost, nothing twice in the result."""

import contextlib
import hashlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster import bucket
from fewstep.commands.prepare import prepare
from fewstep.errors import UserError
from fewstep.evaluate.cell import Cell
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.painters import open_painters
from fewstep.evaluate.painting import find_part
from fewstep.evaluate.studio import EvaluationStudio
from fewstep.parallel.ray_cluster import join_cluster
from fewstep.parallel.ray_workers import ActorSettings, Helpers, RayWorkers
from fewstep.parallel.workers import use_one_thread
from fewstep.recipes.prepare import Prepare

PICTURES = {"model": "scenes", "pictures": 24, "part": 3, "batch_size": 2, "workers": 1}


@pytest.fixture(scope="module")
def ray(machines):
    with join_cluster(machines.address) as ray:
        yield ray


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the processes make."""
    out = tmp_path_factory.mktemp("prepared") / "whole"
    prepare(Prepare(**PICTURES, out=out))
    return hold(out)


def hold(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@contextlib.contextmanager
def meanwhile(work):
    """Does some work in a thread, since machines can be added in the main one alone; yields the list for its result."""
    result = []
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(work)
        yield result
        result.append(going.result(120))


def count_with(ray, notes, jobs, count=2, helpers=None, **more):
    settings = ActorSettings("cluster.counting:Counting", (100, notes))
    workers = RayWorkers(ray, settings, count, helpers and (ActorSettings(helpers, ()), 1))
    try:
        return workers.run(jobs, **more)
    finally:
        workers.close()


def test_a_killed_actor_and_a_machine_that_goes_and_comes_lose_no_job(machines, ray, tmp_path, capfd):
    notes, committed = tmp_path / "notes", []

    def work():
        return count_with(ray, notes, list(range(30)), commit=lambda job, result: committed.append((job, result)))

    with meanwhile(work) as done:
        wait_until(lambda: notes.exists() and len(notes.read_text().split()) > 6)
        os.kill(int(notes.read_text().split()[-2]), signal.SIGKILL)
        wait_until(lambda: len(committed) >= 8)
        machines.take_away()
        wait_until(lambda: len(committed) >= 14)
        machines.bring_back()
    assert done == [[100 + job for job in range(30)]]
    assert sorted(committed) == [(job, 100 + job) for job in range(30)]
    begun = [line.split()[1] for line in notes.read_text().splitlines()]
    assert 30 < len(begun) <= 33  # those that were under way, again
    said = capfd.readouterr()
    assert set(said.err.splitlines()) == {"note: an actor was lost; another makes its part"}
    assert said.out == ""


def test_helpers_are_asked_in_order_and_what_they_cannot_do_is_left(ray, tmp_path):
    notes = tmp_path / "notes"
    assert count_with(ray, notes, [1, 2], count=1, helpers="cluster.counting:Doubling") == [[102, 102], [104, 104]]
    assert list(Helpers([]).run_in_order([1, 2])) == [None, None]


def test_what_a_runner_raises_ends_the_command_in_its_words(ray, tmp_path):
    with pytest.raises(UserError, match=r"^-1 is below 0\nin an actor:"):
        count_with(ray, tmp_path / "notes", [1, -1], count=1)
    workers = RayWorkers(ray, ActorSettings("cluster.counting:Refusing", ()), 1)
    with pytest.raises(UserError, match=r"^it does not want to\n"):
        workers.greet()
    workers.close()


@pytest.mark.usefixtures("ray")
def test_a_folder_that_a_machine_does_not_see_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = f"/proc/self/task/{os.getpid()}/cwd/out"  # leads there in this process alone
    with pytest.raises(UserError, match=r"^machine .* of the ray cluster does not see /proc/.*/out; give as --out a"):
        prepare(Prepare(**PICTURES, out=Path(mine), executor="ray", actors=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize(
    ("readers", "kills"), [(0, 0), pytest.param(1, 1, marks=pytest.mark.slow)], ids=["machine", "machine and actor"]
)
def test_latents_in_a_bucket_are_the_same_bytes_though_machines_are_lost(machines, whole, capfd, readers, kills):
    root = Path(os.environ[bucket.ROOT])
    uploads = root / "uploads.txt"

    def list_uploads():
        return [line.split() for line in uploads.read_text().splitlines()] if uploads.exists() else []

    uploads.unlink(missing_ok=True)
    config = Prepare(**PICTURES, out=f"bucket://shop/{readers}", executor="ray", actors=2, readers=readers)
    with meanwhile(lambda: prepare(config)):
        for at in range(kills):
            wait_until(lambda at=at: len(list_uploads()) > at)
            os.kill(int(list_uploads()[-1][0]), signal.SIGKILL)
        wait_until(lambda: len(list_uploads()) > 2)
        machines.take_away()
        time.sleep(1)
        machines.bring_back()
    assert hold(root / "objects" / "shop" / str(readers)) == whole
    made = [tuple(upload[1:]) for upload in list_uploads()]
    assert dict(made) == {name: hashlib.sha256(content).hexdigest() for name, content in whole.items()}
    assert len(set(made)) == len(whole)  # what was uploaded twice was the same
    said = capfd.readouterr()
    assert f"prepared: 24 pictures, 24 used: bucket://shop/{readers}" in said.out
    assert [line for line in said.err.splitlines() if not line.startswith(("ray: ", "note: "))] == []


@pytest.mark.usefixtures("ray")
def test_what_actors_paint_is_kept_here_and_is_what_one_process_paints(machines, tmp_path):
    config = Evaluate(
        model="scenes-lcm", n=48, n_unseen=0, n_repeated=2, n_tuning=20, batch_size=8, device="cpu", out=tmp_path,
        executor="ray", actors=2,
    )  # fmt: skip
    studio, cell = EvaluationStudio(config), Cell("lcm", 1, "lcm", 3.0)
    jobs = studio.jobs(cell, tuning=False)
    folder = studio.folder(tuning=False) / cell.slug
    with open_painters(config, studio) as painters, meanwhile(lambda: painters.paint(jobs)):
        wait_until(lambda: find_part(folder, 0).exists())
        machines.take_away()
        machines.bring_back()
    assert studio.jobs(cell, tuning=False) == []
    for job in jobs[::3]:
        with use_one_thread():
            alone = studio.paint(job)
        kept = load_file(find_part(folder, job.number))
        assert alone.keys() == kept.keys()
        for name in alone.keys() - {"seconds_per_image"}:
            torch.testing.assert_close(kept[name], alone[name], rtol=0, atol=0)
