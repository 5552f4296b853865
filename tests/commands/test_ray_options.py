"""What `--executor ray` refuses, in words, before anything is started; and that nothing else imports ray."""

import ast
import sys
from pathlib import Path

import pytest

import fewstep
from fewstep.arguments import parse_arguments
from fewstep.data.reading import CropSettings
from fewstep.errors import UserError
from fewstep.evaluate.config import Evaluate
from fewstep.helping import write_help
from fewstep.parallel.ray_cluster import choose_gpus, count_actors, join_cluster
from fewstep.recipes.prepare import Prepare
from fewstep.runs.reading_stage import ReadingRunner, ReadingStage, open_reading

RAY = {"commands/serve_ray.py", "parallel/ray_cluster.py", "parallel/ray_workers.py"}


@pytest.mark.parametrize("config", [Prepare, Evaluate])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"actors": 2}, "actors is 2, which is of ray; give --executor ray too"),
        ({"ray_address": "auto"}, "ray_address is auto, which is of ray"),
        ({"executor": "ray", "workers": 2}, "workers is 2, which is of --executor processes; give --actors"),
        ({"executor": "ray", "gpus_per_actor": 1.5}, "gpus_per_actor is 1.5; above 1 it must be a whole number"),
        ({"executor": "ray", "actors": -1}, "actors is -1; it must not be negative"),
        ({"executor": "ray", "device": "cuda:1"}, "device is cuda:1, and ray gives each actor its GPU"),
        ({"executor": "ray", "device": "cpu", "gpus_per_actor": 0.5}, "gpus_per_actor is 0.5 and device cpu"),
    ],
)
def test_options_of_the_other_executor_are_refused(config, given, said):
    with pytest.raises(UserError, match=said):
        config(**given)


@pytest.mark.parametrize("config", [Prepare, Evaluate])
@pytest.mark.parametrize("words", [("--engine", "ray"), ("--engine=ray",)])
def test_what_shares_the_work_had_the_name_of_what_computes_a_network(config, words, capsys):
    assert parse_arguments(config(), [*words], "fewstep prepare").executor == "ray"
    assert capsys.readouterr().err == (
        "note: --engine is called --executor now; the next version does not take the old name\n"
    )
    assert parse_arguments(config(), ["--executor", "ray"], "fewstep prepare").executor == "ray"
    assert capsys.readouterr().err == ""
    assert "--engine processes" not in write_help(config(), "fewstep prepare", "", whole=True)


def test_readers_are_of_ray():
    with pytest.raises(UserError, match="readers is 1, which is of ray"):
        Prepare(readers=1)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs ray .*; install it with: pip install 'fewstep\[ray\]'"), join_cluster():
        pass


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "127.0.0.1:9",
            r"no ray cluster can be joined at 127.0.0.1:9 \(.*refused\); start one with `ray start --head",
        ),
        ("ray://127.0.0.1:10001", "give HOST:PORT of the cluster itself, or auto"),
    ],
)
def test_a_cluster_that_is_not_there_is_said(address, said):
    with pytest.raises(UserError, match=said), join_cluster(address):
        pass


class SomeCluster:
    """Says of itself what ray does."""

    def __init__(self, *machines):
        self._machines = machines

    def nodes(self):
        return [{"Alive": i != 9, "Resources": dict(each)} for i, each in enumerate(self._machines)]

    def cluster_resources(self):
        return {"GPU": sum(each.get("GPU", 0) for each in self._machines)}


def test_as_many_actors_as_machines_have_room_for():
    cpus = SomeCluster({"CPU": 4}, {"CPU": 2})
    assert (choose_gpus(cpus, 0, "auto"), count_actors(cpus, 0, 0), count_actors(cpus, 0, 2)) == (0, 6, 4)
    assert count_actors(cpus, 0, 9) == 1
    gpus = SomeCluster({"CPU": 8, "GPU": 2}, {"CPU": 2, "GPU": 1}, {"CPU": 64})
    assert (choose_gpus(gpus, 0, "auto"), choose_gpus(gpus, 0, "cpu"), choose_gpus(gpus, 0.25, "auto")) == (1, 0, 0.25)
    assert (count_actors(gpus, 1.0, 5), count_actors(gpus, 0.25, 5), count_actors(gpus, 2, 0)) == (3, 8 + 2, 1)
    with pytest.raises(UserError, match="the ray cluster has no GPU"):
        choose_gpus(cpus, 0.5, "auto")
    with pytest.raises(UserError, match="no machine of the ray cluster has a CPU and 4 GPUs for an actor"):
        count_actors(gpus, 4, 0)


def test_what_helpers_read_is_what_one_reads_alone():
    config, crop = Prepare(model="scenes", pictures=5), CropSettings(resolution=64)
    runner, reading = ReadingRunner(config), open_reading(config, crop)[0]
    batches = [[(0, 0), (1, 1)], [(4, 4)], [(2, 7)]]

    class Others:
        def run_in_order(self, jobs):
            yield from (runner.run(job) if job.places[0][0] != 4 else None for job in jobs)

    helped, alone = (
        [squares for squares, _ in ReadingStage(reading, 0, helpers).read_in_order(batches)]
        for helpers in (Others(), None)
    )
    for one, other in zip(helped, alone, strict=True):
        assert [square.image.tobytes() for square in one] == [square.image.tobytes() for square in other]
        assert [(square.caption, square.sizes) for square in one] == [(each.caption, each.sizes) for each in other]


def test_ray_is_imported_in_functions_alone_and_of_few_files():
    root = Path(fewstep.__file__).parent
    for file in root.rglob("*.py"):
        tree = ast.parse(file.read_text())
        importing = [
            node
            for node in ast.walk(tree)
            if (isinstance(node, ast.Import) and any(each.name.partition(".")[0] == "ray" for each in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray")
        ]
        assert not importing or file.relative_to(root).as_posix() in RAY
        assert not set(map(id, importing)) & set(map(id, tree.body))
