"""`fewstep bench`: what is measured is what is trained, and the plain arrangement beside it computes the same."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from fewstep.commands import bench_train as module
from fewstep.commands.bench_generate import BenchGenerate, bench_generate
from fewstep.commands.bench_train import BenchTrain, Ours, bench_train
from fewstep.commands.distill import distill
from fewstep.errors import UserError
from fewstep.measure.stopwatch import Spread, Stopwatch, count_flops, in_turn, most_bytes
from fewstep.models.loading import load_latent_model
from fewstep.recipes.distill import Distill

CPU = torch.device("cpu")


def plain_arrangement():
    file = Path(__file__).parents[2] / "studies" / "plain_arrangement.py"
    spec = importlib.util.spec_from_file_location("plain_arrangement", file)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.PlainArrangement


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"ema_decay": 0.9, "guided_from": 500, "solver": "dpm-solver++2s", "accumulation": 2},
        {"ema_decay": 0.0, "lora_rank": 4, "guidance_range": (5.0, 5.0)},
        {"ema_decay": 0.9, "lora_rank": 64, "guidance_range": (5.0, 5.0), "batch_size": 16},
    ],
    ids=["whole", "parts", "lora", "lora added first"],
)
def test_both_arrangements_learn_the_same(wide_teacher, tmp_path, changes):
    """And what is measured is the run: its losses are those of `distill`."""
    config = Distill(
        teacher=str(wide_teacher), steps=3, pictures=16, lr=1e-3, sample_every=0, log_every=1,
        out=tmp_path / "run", device="cpu", **{"batch_size": 4, **changes},
    )  # fmt: skip
    plain = plain_arrangement()(config, load_latent_model(wide_teacher, CPU), Stopwatch(CPU))
    ours = Ours(config, load_latent_model(wide_teacher, CPU), Stopwatch(CPU))
    for _ in range(config.steps):
        plain.update()
        ours.update()
    losses = [float(loss) for loss in ours.losses]
    assert losses == pytest.approx(plain.losses, rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
    distill(config)
    logged = [json.loads(line)["loss"] for line in (config.out / "metrics.jsonl").open()]
    assert losses == pytest.approx(logged, rel=1e-6)


def test_the_figures_of_a_comparison(wide_teacher, tmp_path, monkeypatch, capsys):
    config = Distill(teacher=str(wide_teacher), batch_size=2, ema_decay=0.9, lr=1e-3)
    monkeypatch.setattr(module.named, "find_recipe", lambda _: config)
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps({"ratio": 1e-3}))
    out = tmp_path / "a" / "out.json"
    results = bench_train(BenchTrain(compare=True, rounds=2, warm_up=1, device="cpu", json=out, against=earlier))
    assert json.loads(out.read_text()) == json.loads(json.dumps(results))
    ours, plain = results["rows"]
    assert (ours["arrangement"], plain["arrangement"]) == ("fewstep", "plain")
    assert results["ratio"] == ours["images_per_second"] / plain["images_per_second"]
    for row in (ours, plain):
        assert row["images_per_second_low"] <= row["images_per_second"] <= row["images_per_second_high"]
        for part in ("data", "teacher", "student", "target", "backward", "optimiser", "average"):
            assert row[f"{part}_ms"] > 0, part
    assert plain["gflop_per_image"] > ours["gflop_per_image"]  # pictures and texts are encoded at every update
    assert 0 < ours["share_of_matrix_rate"] < 1
    said = capsys.readouterr().out
    assert f"ratio: {results['ratio']:.2f}" in said
    assert f"no slower than {earlier}: scenes {results['ratio']:.2f} (0.00)" in said


def test_what_is_changed_for_a_measurement_is_changed(wide_teacher, monkeypatch):
    config = Distill(teacher=str(wide_teacher), batch_size=2)
    monkeypatch.setattr(module.named, "find_recipe", lambda _: config)
    asked = BenchTrain(batch_size=4, accumulation=2, gradient_checkpointing=True, rounds=1, warm_up=1, device="cpu")
    settings = bench_train(asked)["settings"]
    assert (settings["batch_size"], settings["accumulation"], settings["gradient_checkpointing"]) == (4, 2, True)


def test_without_a_checkout_there_is_nothing_to_compare_with(monkeypatch):
    monkeypatch.setattr(module, "__file__", "/nowhere/a/b/c.py")
    with pytest.raises(UserError, match="stands in studies/ of a checkout"):
        bench_train(BenchTrain(compare=True, rounds=1, device="cpu"))
    with pytest.raises(UserError, match="both must be at least 1"):
        BenchTrain(rounds=0)


def test_a_fall_of_the_ratio_is_an_error(tmp_path):
    file = tmp_path / "earlier.json"

    def compare():
        module.write_and_compare({"ratio": 1.0}, None, file, lambda found: {"scenes": found["ratio"]})

    with pytest.raises(UserError, match=r"earlier.json is not a file that `fewstep bench --compare --json` wrote"):
        compare()
    file.write_text(json.dumps({"ratio": 1.1}))
    compare()
    file.write_text(json.dumps({"ratio": 1e3}))
    with pytest.raises(UserError, match=r"scenes is slower than it was: ratio 1.00, and 1000.00 in "):
        compare()
    with pytest.raises(UserError, match="give --compare too"):
        BenchTrain(against=file)


def test_subjects_are_measured_in_turn():
    order = []
    found = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU, warm_up=1)
    assert "".join(order) == "ab" + "ba" + "ab"
    assert len(found["a"].seconds) == 2
    assert Spread((3.0, 1.0, 2.0)).median == 2.0


def test_parts_are_timed_only_while_the_watch_is_on():
    watch = Stopwatch(CPU)
    act = watch.around("graph", lambda: None, without_gradient="none")
    act()
    assert not watch.seconds
    assert set(watch.per_round(act, 2)) == {"graph"}
    with torch.no_grad():
        assert set(watch.per_round(act, 2)) == {"none"}
    assert not watch.on


def test_work_and_bytes_are_counted():
    left, right = torch.zeros(8, 16), torch.zeros(16, 4)
    assert count_flops(lambda: left @ right) == 2 * 8 * 16 * 4

    def act():
        one = torch.zeros(1000)
        del one
        torch.zeros(500)

    assert most_bytes(act, [left, left.T, right]) == 4 * (8 * 16 + 16 * 4 + 1000)


def test_painting_is_measured_beside_diffusers(tmp_path, capsys, tiny_decoder):
    config = BenchGenerate(
        compare=True, tiny_decoder=str(tiny_decoder), steps=2, batch_size=2, rounds=2, warm_up=1, device="cpu",
        json=tmp_path / "out.json",
    )  # fmt: skip
    results = bench_generate(config)
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(results))
    diffusers, ours, tiny = results["rows"]
    assert [row["engine"] for row in results["rows"]] == ["diffusers", "torch", "torch, tiny decoder"]
    assert ours["most_grey_levels_off"] <= 1  # from diffusers' pictures of the same noise
    assert tiny["grey_levels_off"] > 1  # a random one
    assert ours["ratio"] == diffusers["seconds"] / ours["seconds"]
    for row in (ours, tiny):
        assert min(row[f"{part}_ms"] for part in ("text", "network", "decoder")) > 0
    assert "| torch, tiny decoder |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"engines": ()}, "no engine is given"),
        ({"rounds": 0}, "rounds is 0"),
        ({"steps": 99}, "steps is 99"),
        ({"resolution": 128}, "leave --resolution out"),
    ],
)
def test_measurements_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        BenchGenerate(**wrong)
