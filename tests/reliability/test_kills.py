"""Real processes killed at any moment: what they leave is what an undisturbed run leaves, bit for bit."""

import json
import os
import random
import signal
import time

import pytest
from safetensors.torch import load_file

from warm_command import Warm, start_server

STEPS, BATCH, PICTURES = 30, 4, 40


def arguments(tiny, photos, out, *more):
    return (
        "distill", "scenes", "--teacher", tiny, "--data", photos, "--resolution", 16, "--out", out, "--steps", STEPS,
        "--batch-size", BATCH, "--lr-decay", "cosine", "--lr", 1e-3, "--checkpoint-every", 4, "--log-every", 3,
        "--sample-every", 0, "--record-samples", "--guidance-range", 2, 5, "--guidance-scale", 3,
        "--target-decay", 0.9, *more,
    )  # fmt: skip


def state(run, steps=STEPS):
    (folder,) = (path for path in (run / "checkpoints").iterdir() if path.name == f"step-{steps:07d}")
    return load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())


def same(one, other, steps=STEPS):
    (first, numbers), (second, others) = state(one, steps), state(other, steps)
    return (
        numbers == others
        and first.keys() == second.keys()
        and all(first[name].equal(second[name]) for name in first)
    )  # fmt: skip


def samples(run):
    lines = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [key for line in lines for key in line["keys"]]


@pytest.fixture(scope="module")
def undisturbed(tiny, photos, tmp_path_factory):
    """The run, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    start_server()
    begun = time.monotonic()
    done = Warm(arguments(tiny, photos, out)).wait()
    assert done.returncode == 0, done.stderr
    return out, time.monotonic() - begun


def test_the_same_command_gives_the_same_state_and_another_seed_another(undisturbed, tiny, photos, tmp_path):
    """So that the comparison can fail."""
    for seed, expected in ((0, True), (1, False)):
        assert Warm(arguments(tiny, photos, tmp_path / str(seed), "--seed", seed)).wait().returncode == 0
        assert same(undisturbed[0], tmp_path / str(seed)) is expected


def check_killed_again_and_again(undisturbed, tiny, photos, out, kills, rng):
    run, seconds = undisturbed
    killed = 0
    while killed < kills:
        anew, begun = not out.exists(), time.monotonic()
        warm = Warm(arguments(tiny, photos, out))
        warm.process.join(rng.uniform(0.2, 1.2) * seconds)
        survived = not warm.process.is_alive()
        warm.process.kill()
        warm.process.join()
        killed += not survived
        if survived:  # it came to its end: so the next one begins anew
            assert same(run, out)
            assert samples(out) == samples(run)
            out = out.with_name(f"{out.name}x")
            if anew:  # the machine may have been slower when the undisturbed run was timed
                seconds = min(seconds, time.monotonic() - begun)
    done = Warm(arguments(tiny, photos, out)).wait()
    assert done.returncode == 0, done.stderr
    assert same(run, out)
    assert samples(out) == samples(run)
    assert logged(out) == logged(run)


def logged(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return [(line["step"], line["loss"]) for line in lines]


def test_killed_at_any_moment_it_ends_as_if_undisturbed(undisturbed, tiny, photos, tmp_path):
    keys = samples(undisturbed[0])
    for epoch in range(STEPS * BATCH // PICTURES):  # three, each with every picture once
        assert sorted(keys[epoch * PICTURES : (epoch + 1) * PICTURES]) == [f"{i:03}.png" for i in range(PICTURES)]
    check_killed_again_and_again(undisturbed, tiny, photos, tmp_path / "run", 8, random.Random(0))


@pytest.mark.slow
def test_killed_two_hundred_times(undisturbed, tiny, photos, tmp_path):
    check_killed_again_and_again(undisturbed, tiny, photos, tmp_path / "run", 200, random.Random(1))


def test_adapters_on_a_base_in_4_bits_go_on_after_a_kill(tiny, photos, tmp_path):
    """The base is rounded anew, and alike."""
    own = ("--lora-rank", 2, "--frozen-precision", "nf4", "--guidance-range", 3, 3, "--steps", 6)
    one, other = tmp_path / "one", tmp_path / "other"
    assert Warm(arguments(tiny, photos, one, *own)).wait().returncode == 0
    warm = Warm(arguments(tiny, photos, other, *own))
    while not (other / "checkpoints" / "step-0000004").is_dir():
        assert warm.process.is_alive()
        time.sleep(0.005)
    warm.process.kill()
    warm.process.join()
    assert not (other / "model").exists()
    assert "goes on after update 4 of 6" in Warm(arguments(tiny, photos, other, *own)).wait().stderr
    assert same(one, other, 6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_ends_its_update_saves_and_says_so(undisturbed, tiny, photos, tmp_path, number):
    out = tmp_path / "run"
    warm = Warm(arguments(tiny, photos, out))
    for _ in range(3000):
        if (out / "checkpoints").is_dir() and list((out / "checkpoints").glob("step-???????")):
            break
        time.sleep(0.02)
    os.kill(warm.process.pid, number)
    done = warm.wait()
    assert done.returncode == 128 + number
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fewstep: stopped after update ")
    step = int(last.split("update ")[1].split(",")[0])
    assert (out / "checkpoints" / f"step-{step:07d}").is_dir()
    again = Warm(arguments(tiny, photos, out)).wait()
    assert f"goes on after update {step} of {STEPS}" in again.stderr
    assert same(undisturbed[0], out)


def test_a_run_goes_on_with_settings_that_may_change(tiny, photos, tmp_path):
    """More steps of a constant learning rate: as if they had been asked for at once."""
    plain = ("--lr-decay", "constant")
    assert Warm(arguments(tiny, photos, tmp_path / "long", *plain)).wait().returncode == 0
    short, out = (*plain, "--steps", 12), tmp_path / "run"
    assert Warm(arguments(tiny, photos, out, *short)).wait().returncode == 0
    refused = Warm(arguments(tiny, photos, out, *plain)).wait()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "steps is 12 there and 30 here" in refused.stderr
    assert "go on with the new ones: --change steps" in refused.stderr
    wrong = Warm(arguments(tiny, photos, out, *plain, "--change", "stepz")).wait()
    assert "change names stepz, which is not a setting" in wrong.stderr
    done = Warm(arguments(tiny, photos, out, *plain, "--change", "steps")).wait()
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "long", out)
    assert (out / "model-before-1").is_dir()
    assert "steps: 12" in (out / "config-before-1.yaml").read_text()
    assert "steps: 30" in (out / "config.yaml").read_text()
