"""`prepare --trajectories`: what is kept is where walkers stand, and an update on it asks no teacher."""

import dataclasses
import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import fewstep
from fewstep.commands.distill import distill, load_teacher, make_path, make_student
from fewstep.commands.inspect import describe
from fewstep.commands.prepare import prepare
from fewstep.data.shards.manifest import MANIFEST
from fewstep.data.shards.trajectories import TrajectoryShards
from fewstep.data.sources.prompts import PromptFile
from fewstep.errors import UserError
from fewstep.method.paths import TeacherPath
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.recipes.prepare import Prepare
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs import walking
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.runs.unfinished import load_painter
from fewstep.train.loop import fit
from written_shards import picture, sample, write_tar

COUNT, HOPS = 10, 8


@pytest.fixture(scope="module")
def walked(random_teacher):
    """The settings of ten trajectories of eight steps."""
    return Prepare(
        model=str(random_teacher), trajectories=COUNT, skip=125, guidance_range=(2.0, 9.0), pictures=6, part=4,
        batch_size=4, seed=3, workers=1, states_precision="fp32", device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def kept(walked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "trajectories"
    prepare(dataclasses.replace(walked, out=folder))
    return folder


@pytest.fixture(scope="module")
def run(random_teacher, kept):
    return Distill(
        teacher=str(random_teacher), data=str(kept), method="any-step", skip=125, guidance_range=(2.0, 9.0), steps=4,
        batch_size=4, lr=1e-2, ema_decay=0.5, seed=3, sample_every=0, checkpoint_every=2, device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def teacher(run):
    return load_teacher(run)


def start(config, model):
    """Returns the task, what learns, and the teacher of a run."""
    torch.manual_seed(0)
    student = make_student(config, model)
    latents = open_material(config, model).latents()
    return make_task(config, student, make_path(config, student, model), model, latents), student, model


def test_what_is_kept_is_where_walkers_stand(run, teacher, kept):
    shards = TrajectoryShards(kept)
    assert (len(shards), shards.hops, shards.shard_sizes) == (COUNT, HOPS, (4, 4, 2))
    task, _, model = start(dataclasses.replace(run, data="scenes", pictures=6, states="walkers"), teacher)
    seen = 0
    for visit in range(12):
        counters = range(4 * visit, 4 * visit + 4)
        batch, _ = task.draw_batch(counters)
        task.loss(counters)
        for row, (number, hop) in enumerate(zip(*task._walk.locate(counters), strict=True)):
            place = shards.locate(number)
            z_t, z_e = (shards.read_state(*place, stop) for stop in (hop, shards.stops.index(batch.e[row])))
            torch.testing.assert_close(z_t, batch.z_t[row], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(z_e, batch.z_s[row], rtol=1e-4, atol=1e-5)
            assert shards.read_omega(*place) == batch.omega[row]
            assert shards.stops[hop] == batch.t[row] > batch.e[row] == batch.s[row]
            text = model.conditioner.encode([shards.read_row(*place).caption])["text"][0]
            torch.testing.assert_close(text, batch.cond["text"][row], rtol=1e-4, atol=1e-5)
            seen += 1
    assert seen == 48


def test_in_half_precision_they_are_half_as_large_and_the_same_to_rounding(walked, kept, tmp_path):
    prepare(dataclasses.replace(walked, out=tmp_path / "half", states_precision="fp16"))
    for name in TrajectoryShards(kept).names:
        one, half = (load_file(folder / f"{name}.safetensors")["states"] for folder in (kept, tmp_path / "half"))
        assert half.nbytes * 2 == one.nbytes
        torch.testing.assert_close(half.float(), one, rtol=2**-10, atol=1e-6)


def test_cut_short_it_goes_on_and_ends_with_the_same_bytes(walked, teacher, kept, tmp_path, monkeypatch):
    config = dataclasses.replace(walked, out=tmp_path / "cut")
    written = []

    def write(store, name, *more):
        if written:
            raise OSError(28, "No space left on device", f"{store}/{name}")
        written.append(name)
        honest(store, name, *more)

    honest = walking.write_shard
    monkeypatch.setattr(walking, "write_shard", write)
    with pytest.raises(OSError, match="No space left"):
        prepare(config)
    with pytest.raises(UserError, match="is not completely prepared"):
        open_material(Distill(data=str(config.out)), teacher)
    monkeypatch.setattr(walking, "write_shard", lambda *given: written.append(given[1]) or honest(*given))
    prepare(config)
    assert len(written) == len(set(written)) == 3
    assert {file.name: file.read_bytes() for file in config.out.iterdir()} == {
        file.name: file.read_bytes() for file in kept.iterdir()
    }
    with pytest.raises(UserError, match=r"was prepared with skip 125, not 100; choose another --out"):
        prepare(dataclasses.replace(config, skip=100))


def test_every_step_of_every_trajectory_comes_once_an_epoch_however_it_is_shared_out(run, teacher):
    task, _, _ = start(run, teacher)
    pairs = COUNT * HOPS
    batches = [task.draw_batch(range(i, i + 4)) for i in range(0, pairs, 4)]
    names = [key for i in range(0, pairs, 4) for key in task.keys(range(i, i + 4))]
    assert len(set(names)) == len(names) == pairs
    assert all(valid.all() for _, valid in batches)
    for first in (0, 40, 76):
        whole, parts = task.draw_batch(range(first, first + 4))[0], range(first + 2, first + 4)
        late = start(run, teacher)[0].draw_batch(parts)[0] if first == 40 else task.draw_batch(parts)[0]
        for name in ("z_0", "z_t", "z_s", "t", "s", "e", "omega"):
            assert torch.equal(getattr(late, name), getattr(whole, name)[2:])
        assert torch.equal(late.cond["text"], whole.cond["text"][2:])
        assert bool((whole.e == whole.s).all() & (whole.s < whole.t).all())
    fresh, _, _ = start(dataclasses.replace(run, keep_gib=0.0), teacher)
    torch.testing.assert_close(fresh.draw_batch(range(4))[0].cond["text"], batches[0][0].cond["text"])
    assert task.keys(range(4)) != start(dataclasses.replace(run, seed=4), teacher)[0].keys(range(4))


@pytest.mark.parametrize(
    "change",
    [{}, {"method": "pcm", "phases": (4,)}, {"method": "lcm"}, {"method": "tcd"}, {"method": "pcm", "lora_rank": 2}],
    ids=str,
)
def test_no_method_asks_the_teacher(run, teacher, change, monkeypatch):
    """What it learns is where the teacher's steps lead, one after the other, to the end that was drawn."""
    guidance = {"guidance_range": (5.0, 5.0)} if "lora_rank" in change else {}
    monkeypatch.setattr("fewstep.runs.trajectories._check_settings", lambda *_: None)  # of a LoRA's one guidance
    config = dataclasses.replace(run, **change, **guidance)
    task, student, model = start(config, load_teacher(config) if guidance else teacher)
    counters = range(8, 12)
    batch, _ = task.draw_batch(counters)
    path, stops, z = make_path(run, student, model), task._trajectories.stops, batch.z_t
    for t, s in itertools.pairwise(stops):
        further = path(z, dataclasses.replace(batch, t=t.expand(4), s=s.expand(4)))
        on_its_way = (t <= batch.t) & (t > batch.e)
        z = torch.where(on_its_way.view(-1, 1, 1, 1), further, z)
    torch.testing.assert_close(z, batch.z_s, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(TeacherPath, "__call__", None)
    loss = task.loss(counters)
    assert loss.total > 0
    loss.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.learner.weights.parameters())


def test_a_run_without_its_teacher_cut_and_taken_up_ends_with_the_same_weights(run, tmp_path):
    states = []
    for name, ends in (("one", (4,)), ("two", (2, 4))):
        for steps in ends:
            task, _, model = start(run, load_teacher(run))
            model.network.backbone.to("meta")
            fit(task, dataclasses.replace(run, steps=steps), tmp_path / name, "")
        states.append(load_file(tmp_path / name / "checkpoints/step-0000004/state.safetensors"))
    assert states[0].keys() == states[1].keys()
    assert all(value.equal(states[1][name]) for name, value in states[0].items())


def test_distilled_from_what_is_kept(run, kept, tmp_path, capsys):
    config = dataclasses.replace(run, out=tmp_path / "run", steps=2, sample_every=2)
    distill(dataclasses.replace(config, dry_run=True))
    assert f"plan: 2 updates of 4, {2 * 4 / (COUNT * HOPS):.1f} epochs" in capsys.readouterr().out
    distill(config)
    assert len(fewstep.load(config.out, "cpu")("a red star", steps=2, seed=1)) == 1
    held = json.loads((config.out / "data.json").read_text())
    assert held["sources"][str(kept)]["used"] == COUNT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skip": 100}, "walked with skip 125 and this run has 100; give --skip 125, or prepare trajectories with"),
        ({"solver": "dpm-solver-2"}, "walked with solver ddim and this run has dpm-solver-2; give --solver ddim"),
        ({"guidance_range": (2.0, 8.0)}, r"guidance_range 2.0 9.0 and this run has 2.0 8.0; give --guidance-range 2.0"),
        ({"guided_from": 500}, "guided_from 0 and this run has 500"),
        ({"phases": (1, 3)}, "does not stop where 3 phases begin; prepare trajectories with --phases 1 3"),
        ({"states": "walkers"}, "holds trajectories, and states is walkers; give --states trajectories"),
        ({"states": "data"}, "holds trajectories, and states is data"),
        ({"method": "guided-distill"}, "equal steps, and --method guided-distill wants others"),
        ({"times": "any", "method": "lcm"}, "trajectories go on by equal steps, and --times any wants others"),
        ({"resolution": 32}, "latent_shape is .* there and .* here; give the teacher that walked"),
        ({"teacher": "scenes"}, "not walked by scenes at this resolution: teacher_sha256 is"),
        ({"method": "tdm", "guidance_range": (5.0, 5.0)}, "tdm follows the student; give --data pictures"),
        ({"flip": True}, "holds trajectories, for which flip was settled"),
        ({"data": "scenes", "states": "trajectories"}, "scenes holds no trajectories; `fewstep prepare --traj"),
    ],
    ids=str,
)
def test_what_does_not_fit_a_run_is_refused_in_a_line(run, teacher, change, said):
    config = dataclasses.replace(run, **change)
    with pytest.raises(UserError, match=said) as refused:
        open_material(config, load_teacher(config) if "teacher" in change else teacher)
    assert "\n" not in str(refused.value)


def test_a_student_that_goes_on_needs_the_stops_of_its_own_phases(run, tmp_path):
    pcm = dataclasses.replace(run, method="pcm", steps=1, states="walkers")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red star\n")
    distill(dataclasses.replace(pcm, data=str(prompts), phases=(7,), out=tmp_path / "seven"))
    again = dataclasses.replace(pcm, states="auto", start=str(tmp_path / "seven"), out=tmp_path / "again")
    with pytest.raises(UserError, match="does not stop where 7 phases begin; prepare trajectories with --phases 7"):
        distill(again)
    walkers = dataclasses.replace(again, states="walkers", data=str(prompts), out=tmp_path / "walkers")
    distill(walkers)  # whose phases its configuration does not say
    (walkers.out / "model").rename(tmp_path / "model")
    assert load_painter(walkers.out, "cpu").steps == fewstep.load(tmp_path / "model", "cpu").steps == 7


def test_only_a_distillation_takes_them(teacher, kept):
    for config in (Finetune(data=str(kept)), TrainLora(model="scenes", data=str(kept))):
        with pytest.raises(UserError, match="of a teacher, which only `fewstep distill` learns from"):
            open_material(config, teacher)
    with pytest.raises(UserError, match="trajectories follow a teacher, and a fine-tuning has none"):
        Finetune(states="trajectories")
    with pytest.raises(UserError, match="trajectories go on by equal steps, and --shrink wants others"):
        Distill(states="trajectories", shrink=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skip": 30}, "skip is 30, which is of trajectories; give --trajectories too"),
        ({"zero_snr": True}, "zero_snr is True, which is of trajectories"),
        ({"trajectories": 4, "std": False}, "std is False, which is of pictures; trajectories have none"),
        ({"trajectories": -1}, "must be at least 0"),
        ({"trajectories": 4, "guidance_range": (0.5, 3.0)}, "needed: 1 ≤ low ≤ high"),
        ({"trajectories": 4, "phases": (0,)}, "expected numbers from 1"),
        ({"trajectories": 4, "skip": 0}, "allowed: 1 to 500"),
        ({"trajectories": 4, "solver": "euler"}, "allowed:"),
    ],
)
def test_settings_of_the_other_kind_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Prepare(**settings)


def test_a_few_step_model_and_a_teacher_that_breaks_are_refused(walked, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="scenes-lcm is a few-step model, which has no trajectories"):
        prepare(dataclasses.replace(walked, model="scenes-lcm", out=tmp_path / "out"))
    broken = dataclasses.replace(walked, out=tmp_path / "broken")
    monkeypatch.setattr(TeacherPath, "__call__", lambda _, z_t, __: z_t * torch.nan)
    with pytest.raises(UserError, match=r"trajectory 0 \(.*\) at t = 874 is not a finite number in fp32"):
        prepare(broken)


def test_prompts_of_a_file(walked, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red  star\r\n\nzwölf Sterne\n".encode())
    config = dataclasses.replace(walked, data=str(file), out=tmp_path / "out", trajectories=4)
    prepare(config)
    assert "data: 3 lines found, 2 used, 1 dropped (1 empty caption)" in capsys.readouterr().out
    shards = TrajectoryShards(config.out)
    rows = [shards.read_row(*shards.locate(i)) for i in range(4)]
    assert sorted(row.caption for row in rows) == ["a red star"] * 2 + ["zwölf Sterne"] * 2
    assert {row.key for row in rows} >= {f"trajectory 0 of prompts.txt:{1 if 'red' in rows[0].caption else 3}"}
    file.write_text("a red star\n\nzwölf Monde\n")
    with pytest.raises(UserError, match="was prepared with pictures_sha256"):
        prepare(config)
    for content, said in ((b"\n \n", "has no prompt"), (b"a\n\xff\n", r"is not UTF-8 text \(line 2\)")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=said):
            PromptFile(file, 8)
    with pytest.raises(UserError, match="cannot be read"):
        PromptFile(tmp_path / "absent.txt", 8)


def test_a_picture_that_cannot_be_read_gives_no_trajectory(walked, tmp_path):
    members = {}
    for i in range(3):
        members |= sample(f"{i}", f"a star, number {i}", picture(kind="JPEG")[: 200 if i == 1 else None])
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", members)
    prepare(dataclasses.replace(walked, data=str(tmp_path / "shards"), out=tmp_path / "out", trajectories=6, skip=500))
    shards = TrajectoryShards(tmp_path / "out")
    assert shards.report == {"found": 6, "used": 4, "dropped": {"broken picture": 2}}
    rows = [shards.read_row(*shards.locate(i)) for i in range(4)]
    assert sorted(row.caption for row in rows) == ["a star, number 0"] * 2 + ["a star, number 2"] * 2


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("stops", [999, 499]), ("stops", [0, 499, 0]), ("stops", "999"), ("stops", [999.5, 0]), ("stops", [0]),
        ("stops", None), ("latent_shape", [4, -8]), ("latent_shape", {}),
    ],
)  # fmt: skip
def test_a_list_that_says_otherwise_is_refused(kept, tmp_path, entry, value):
    (tmp_path / "forged").mkdir()
    held = json.loads((kept / MANIFEST).read_text())
    held["made_of"][entry] = value
    (tmp_path / "forged" / MANIFEST).write_text(json.dumps(held))
    with pytest.raises(UserError, match="trajectories"):
        TrajectoryShards(tmp_path / "forged")


def test_a_shard_of_other_shapes_is_refused(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    held = json.loads((folder / MANIFEST).read_text())
    first = next(iter(held["shards"]))
    held["shards"][first] = 3
    (folder / MANIFEST).write_text(json.dumps(held))
    with pytest.raises(UserError, match="does not hold the trajectories of its table"):
        TrajectoryShards(folder).read_state(0, 0, 0)


def test_a_folder_of_them_is_described(kept):
    said = list(describe(kept))
    assert said[0] == "prepared: 10 trajectories in 3 shards"
    assert said[1] == f"learn from it: fewstep distill --data {kept} --out RUN"
    assert "skip: 125" in said
