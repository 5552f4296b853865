"""`fewstep bench methods`: what few steps leave on a world whose guided ODE is known."""

import json

import pytest
import torch

from fewstep.commands.bench_methods import (
    STABLE_DIFFUSION,
    BenchMethods,
    Oracle,
    bench_methods,
    tabulate,
    train_and_measure,
)
from fewstep.diffusion.schedule import Tabulated
from fewstep.errors import UserError
from fewstep.measure.mixture import energy_distance
from fewstep.method.named import METHODS


def test_a_table_for_each_guidance_and_a_row_for_each_method(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.commands.bench_methods.ORACLES", (0.0, 1.0))
    config = BenchMethods(
        methods=("lcm", "ect"), omega=(0.0, 5.0), steps=(1, 4), updates=2, batch_size=8, points=128, seeds=(0, 1),
        json=tmp_path / "rows.json",
    )  # fmt: skip
    results = bench_methods(config)
    said = capsys.readouterr().out
    for line, count in (("ω = 0:", 1), ("ω = 5:", 1), ("| lcm |", 2), ("| ect |", 1), ("| exact, γ = 1 |", 2)):
        assert said.count(line) == count
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(results["rows"]) == 2 * 2 * 2 + (2 + 1) * 2 * 2
    found = {(row["method"], row["omega"], row["steps"]): row for row in rows}
    # The disease and its cure, in the same exact map: re-noised under guidance it drifts, and left alone it does not.
    assert found["exact, γ = 0", 5.0, 4]["rms"] < 0.02
    assert found["exact, γ = 0", 5.0, 4]["energy"] < 15
    assert found["exact, γ = 1", 0.0, 4]["energy"] < 15
    assert found["exact, γ = 1", 5.0, 4]["energy"] > 150
    trained = [row for row in rows if row["method"] == "lcm"]
    assert len({row["energy"] for row in trained}) == len(trained)  # seeds, steps and guidance all count


@pytest.fixture(scope="module")
def world():
    return Oracle(Tabulated.from_config(STABLE_DIFFUSION), (0.0,), 64)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name, world):
    """After a few updates a picture is nearer to where the ODE leads."""
    settings = [BenchMethods(omega=(0.0,), steps=(4,), updates=updates, points=64) for updates in (1, 40)]
    before, after = (train_and_measure(METHODS[name], each, world, 0)[0]["rms"] for each in settings)
    assert after < before


@pytest.fixture(scope="module")
def flow_world():
    return Oracle(BenchMethods(shift=3.0).schedule, (2.0,), 64)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ect"])
def test_every_method_learns_on_a_flow(name, flow_world):
    settings = [BenchMethods(shift=3.0, omega=(2.0,), steps=(4,), updates=updates, points=64) for updates in (1, 60)]
    before, after = (train_and_measure(METHODS[name], each, flow_world, 0)[0]["rms"] for each in settings)
    assert after < before


def test_the_second_stage_is_measured_at_its_own_steps(world):
    """The first student stands for its 8 steps; of 3 there is none."""
    config = BenchMethods(omega=(0.0,), steps=(8, 4, 3, 1), updates=40, points=64)
    rows = train_and_measure(METHODS["guided-distill"], config, world, 0)
    first = {row["steps"]: row["rms"] for row in rows if row["method"] == "guided-distill"}
    halved = {row["steps"]: row["rms"] for row in rows if row["method"] == "guided-distill, halved"}
    assert list(halved) == [8, 4, 1]
    assert halved[8] == first[8]
    assert halved[1] < 0.8 * first[1]
    assert tabulate(rows, 0.0, config.steps)[-1].count("/") == 3


def test_an_energy_distance_is_zero_for_the_same_law_and_grows():
    x, y = torch.randn(2, 1000, 2, generator=torch.Generator().manual_seed(0))
    assert abs(energy_distance(x, y)) < 0.01
    assert energy_distance(x, y + 1) > energy_distance(x, y + 0.5) > 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"omega": (7.0,)}, "students are trained for -1 to 6"),
        ({"steps": (50,)}, "with skip 25 they are 1 to 40"),
        ({"methods": ()}, "must name at least one each"),
        ({"updates": 0}, "updates is 0"),
    ],
)
def test_mistakes(settings, said):
    with pytest.raises(UserError, match=said):
        BenchMethods(**settings)
