"""`fewstep plan`: what it counts is what an update takes, and what it advises fits."""

import dataclasses
import re

import pytest
import torch
from PIL import Image

from fewstep.arguments import parse_arguments
from fewstep.commands.bench_train import Ours
from fewstep.commands.distill import make_path, make_student
from fewstep.commands.plan import MemoryPlan, Plan, list_plans, plan
from fewstep.errors import UserError
from fewstep.measure.memory import GIB, Need, count_need
from fewstep.measure.shapes import norms_in_fp32
from fewstep.measure.stopwatch import Stopwatch, most_bytes
from fewstep.models.families import find_family
from fewstep.models.families.stable_diffusion import SD1
from fewstep.models.loading import load_latent_model
from fewstep.parallel.world import current_world
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.runs.adversarial import add_heads
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.train.loop import begin, do_update

CPU = torch.device("cpu")


@pytest.fixture
def miniature(wide_teacher, monkeypatch):
    """Returns the model and its family, as `plan` would count it."""
    model = load_latent_model(wide_teacher, CPU)
    own = {name: value for name, value in model.network.backbone.config.items() if not name.startswith("_")}
    family = dataclasses.replace(SD1, unet=own, released_latent_channels=model.codec.channels)
    tokens = model.conditioner.first.tokenizer.model_max_length
    monkeypatch.setattr("fewstep.models.families.stable_diffusion.TOKENS", tokens)
    return model, family


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 8])
def test_what_is_counted_without_contents_is_what_an_update_takes(wide_teacher, miniature, rank, checkpointing):
    model, family = miniature
    config = Distill(
        teacher=str(wide_teacher), batch_size=16, pictures=16, lora_rank=rank, guidance_range=(5.0, 5.0),
        ema_decay=0.0 if rank else 0.9, target_decay=None if rank else 0.5, gradient_checkpointing=checkpointing,
        frozen_precision="bf16", precision="bf16", device="cpu",
    )  # fmt: skip
    counted = count_need(config, family, 8)
    if not rank:  # adapters hang on their teacher
        one_average = dataclasses.replace(config, target_decay=None)
        without = count_need(dataclasses.replace(one_average, states="trajectories"), family, 8)
        weights = sum(p.numel() for p in model.network.parameters())
        assert count_need(one_average, family, 8).peak - without.peak == pytest.approx(2 * weights, rel=0.05)
        itself, walking = ({"target": "itself"}, {"states": "walkers"})  # two trajectories a row, of 51 stops
        more = [count_need(dataclasses.replace(one_average, **change), family, 8).peak for change in (itself, walking)]
        assert more[1] - more[0] == pytest.approx(2 * 16 * 51 * model.codec.channels * 8 * 8 * 4, rel=0.02)
    ours = Ours(config, model, Stopwatch(CPU))
    ours.update()
    (student,) = ours.state.roles
    tensors = [*student.role.weights.parameters(), *model.network.parameters()]
    tensors += [value for each in student.optimizer.state.values() for value in each.values()]
    tensors += [value for each in (student.role.average, student.role.target) if each for value in each.parameters()]
    with norms_in_fp32(enabled=True):  # as CUDA has it
        measured = most_bytes(ours.update, tensors)
    assert counted.peak == pytest.approx(measured, rel=0.2)
    assert counted.learning == sum(p.numel() for p in student.parameters)
    saved = sum(value.nbytes for name, value in ours.state.tensors().items() if name != "losses")
    assert counted.saved == pytest.approx(saved, rel=0.01)


def test_a_base_that_is_split_under_adapters_is_counted():
    recipe = named.find_recipe("flux-lora")
    plans = [*list_plans(Plan(recipe="flux-lora", gpus=4), recipe)]
    whole, split = ([each.bytes(1) for each in plans if each.fsdp is fsdp] for fsdp in (False, True))
    assert len(whole) == len(split) == 4
    base = 2 * sum(value.numel() for value in find_family("flux").shaped_network().parameters())
    for one, other in zip(whole, split, strict=True):
        assert 0.65 * base < one - other < 0.75 * 1.05 * base
    changed = dataclasses.replace(recipe, frozen_precision="nf4")  # which `distill` refuses to split
    assert not any(each.fsdp for each in list_plans(Plan(recipe="flux-lora", gpus=4), changed))


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_base_in_few_bits_is_counted(wide_teacher, miniature, bits):
    """With what is put together of it while a layer computes."""
    model, family = miniature
    config = Distill(
        teacher=str(wide_teacher), batch_size=2, pictures=8, lora_rank=8, guidance_range=(5.0, 5.0),
        gradient_checkpointing=True, frozen_precision=bits, precision="bf16", device="cpu",
    )  # fmt: skip
    counted, in_bf16 = (
        count_need(config, family, 8),
        count_need(dataclasses.replace(config, frozen_precision="bf16"), family, 8),
    )
    weights = sum(p.numel() for p in model.network.parameters())
    assert in_bf16.weights - counted.weights > {"int8": 0.7, "nf4": 1.1}[bits] * weights  # all but few, and scales
    assert in_bf16.peak > counted.peak
    ours = Ours(config, model, Stopwatch(CPU))
    ours.update()
    # networks are kept in what they compute in, but for what stands outside the blocks
    tensors = [*model.network.parameters(), *model.network.buffers(), *ours.state.roles[0].role.weights.parameters()]
    tensors += [value for each in ours.state.roles[0].optimizer.state.values() for value in each.values()]
    with norms_in_fp32(enabled=True):
        measured = most_bytes(ours.update, tensors)
    assert counted.peak == pytest.approx(measured, rel=0.2)


def test_heads_and_what_they_read_are_counted(wide_teacher, miniature):
    model, family = miniature
    config = Distill(
        teacher=str(wide_teacher), batch_size=8, pictures=8, lora_rank=8, guidance_range=(5.0, 5.0),
        adversarial=0.1, gradient_checkpointing=True, frozen_precision="bf16", precision="bf16", device="cpu",
    )  # fmt: skip
    counted, base = count_need(config, family, 8), sum(p.numel() for p in model.network.parameters())
    student = make_student(config, model)
    plain = make_task(
        config, student, make_path(config, student, model), model, open_material(config, model).latents()
    )  # fmt: skip
    task = add_heads(config, plain, student, model)
    assert counted.weights == 2 * base + 4 * sum(p.numel() for role in task.roles for p in role.weights.parameters())
    state, world = begin(task.roles, config), current_world()
    do_update(task, state, config, world)
    tensors = [*model.network.parameters()]
    for role in state.roles:
        tensors += role.role.weights.parameters()
        tensors += [value for each in role.optimizer.state.values() for value in each.values()]
    with norms_in_fp32(enabled=True):
        measured = most_bytes(lambda: do_update(task, state, config, world), tensors)
    assert counted.peak == pytest.approx(measured, rel=0.2)


def counted(config, _family, _side):
    """A model of memory in round numbers: 10 GiB of weights, 2 GiB a picture, a quarter of that when checkpointed."""
    part = config.batch_size // config.accumulation
    each = 0.5 if config.gradient_checkpointing else 2.0
    return Need(
        peak=int((10 + each * part) * GIB), weights=4 * GIB, learning=int(0.5 * GIB), saved=8 * GIB,
        flops=int(each * 1e12),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    monkeypatch.setattr("fewstep.commands.plan.count_need", counted)


def best(config, capsys):
    plan(config)
    return capsys.readouterr().out.splitlines()[-1]


def test_it_says_what_text_encoders_take_of_it(capsys):
    plan(Plan(recipe="sd35-lora", gpu_memory=17))
    *_, includes, advice = capsys.readouterr().out.splitlines()
    assert includes.startswith("each number includes 12.9 GiB for autoencoder and text encoders")
    least = float(advice.partition("with pictures kept encoded ")[2].partition(" GiB would do")[0])
    assert "nothing fits" in advice
    assert least <= 17
    plan(Plan(recipe="sd35-lora", gpu_memory=least - 0.1))
    assert "would do" not in capsys.readouterr().out


def test_it_says_how_long_the_work_takes(capsys):
    def read(config):
        plan(config)
        *_, work, _, _, _ = capsys.readouterr().out.splitlines()
        found = re.fullmatch(r"work: ([\d.]+) TFLOP a picture, which makes ([\d,.]+) hours .*", work)
        return float(found[1]), float(found[2].replace(",", ""))

    recipe = named.find_recipe("sd15")
    hours = 2 * recipe.batch_size * recipe.steps / 100 / 3600
    assert read(Plan(gpu_memory=80)) == (2.0, pytest.approx(hours, rel=0.01))
    assert read(Plan(gpu_memory=80, gpus=4, tflops=200.0)) == (2.0, pytest.approx(hours / 8, rel=0.01))
    assert read(Plan(gpu_memory=18.3))[0] == 0.5  # of the settings that it gives


def test_it_says_what_a_checkpoint_takes_of_main_memory(capsys):
    """The counted 8 GiB with AdamW's moments, of half a giga of weights; 3 less where those are in 8 bits."""
    for gpu_memory, gib in ((80, "8.0"), (9, "8.0"), (11.5, "5.0")):
        plan(Plan(gpu_memory=gpu_memory))
        *_, said, _, advice = capsys.readouterr().out.splitlines()
        assert said.startswith(f"main memory: {gib} GiB for the copy")
        assert said.endswith(", in the first process")
        assert ("adamw8bit" in advice) == (gib == "5.0")
    plan(Plan(gpu_memory=9, gpus=8))
    assert ", its rows in each process" in capsys.readouterr().out


def test_it_says_how_many_pictures_lie_in_each_bucket(tmp_path, monkeypatch, capsys):
    (tmp_path / "d").mkdir()
    for i in range(14):
        Image.new("RGB", (60, 40) if i < 4 else (40, 40)).save(tmp_path / "d" / f"{i}.png")
        (tmp_path / "d" / f"{i}.txt").write_text("words")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    counted = MemoryPlan(
        optimizer="adamw", fsdp=False, checkpointing=False, alone=GIB, each=0.0, saved=GIB, flops=10**12
    )
    monkeypatch.setattr("fewstep.commands.plan.list_plans", lambda *_: [counted])
    plan(Plan(recipe="sdxl-lora", batch_size=8, data=str(tmp_path / "d"), buckets="on"))
    said = capsys.readouterr().out
    assert "buckets, width × height: 1216x832: 4, 1024x1024: 10\n" in said
    assert "warning: 1216x832 have fewer pictures than an update takes (8)" in said
    assert said.endswith(" --buckets on\n")
    assert f"--data {tmp_path / 'd'}" in said


def test_the_work_is_that_of_the_passes():
    """A UNet of Stable Diffusion 1.5 takes 0.8 TFLOP a pass at 512 pixels, with its attention.

    An update of all its weights is six of them: the teacher twice, the target, the student, and twice that backwards;
    and one more where its gradient is computed from checkpoints.
    """
    plain = dataclasses.replace(named.find_recipe("sd15"), batch_size=1, accumulation=1, gradient_checkpointing=False)
    six = count_need(plain, SD1, 64).flops
    assert six == pytest.approx(6 * 0.8e12, rel=0.05)
    seven = count_need(dataclasses.replace(plain, gradient_checkpointing=True), SD1, 64).flops
    assert 1.1 * six < seven <= 7 / 6 * six  # the blocks are, and not what stands between them
    assert count_need(dataclasses.replace(plain, batch_size=4, accumulation=2), SD1, 64).flops == pytest.approx(
        six, rel=0.01
    )


def test_the_advice_follows_the_memory(capsys):
    roomy = best(Plan(gpu_memory=80), capsys)
    assert (
        roomy
        == "best: fewstep distill sd15 --teacher MODEL --data PICTURES --accumulation 3 --no-gradient-checkpointing"
    )
    assert "--accumulation 6 --gradient-checkpointing" in best(Plan(gpu_memory=18.3), capsys)
    assert "--optimizer adamw8bit" in best(Plan(gpu_memory=12), capsys)
    assert best(Plan(gpu_memory=4), capsys).startswith("nothing fits: more GPUs")
    spread = best(Plan(gpu_memory=9, gpus=8), capsys)
    assert "--distribution fsdp --processes 8" in spread
    changed = best(Plan(gpu_memory=80, batch_size=8, resolution=256), capsys)
    assert "--accumulation 1" in changed
    assert "--batch-size 8 --resolution 256" in changed
    assert best(Plan(gpu_memory=80, method="any-step"), capsys).endswith(" --method any-step")
    assert best(Plan(gpu_memory=80, states="trajectories"), capsys).endswith(" --states trajectories")
    assert best(Plan(gpu_memory=80, target_decay=0.95), capsys).endswith(" --target-decay 0.95")
    assert best(Plan(gpu_memory=80, adversarial=0.1), capsys).endswith(" --no-gradient-checkpointing --adversarial 0.1")


@pytest.mark.parametrize("config", [Plan(gpu_memory=18.3), Plan(gpu_memory=12, gpus=4), Plan(recipe="sdxl-lora")])
def test_the_command_it_gives_is_one_and_means_what_was_counted(capsys, config):
    rows = plan(config)
    name, *options = capsys.readouterr().out.splitlines()[-1].removeprefix("best: fewstep distill ").split()
    parsed = parse_arguments(named.find_recipe(name), options, "fewstep distill")
    share = parsed.batch_size // parsed.processes
    wanted = {
        "optimizer": parsed.optimizer, "distribution": parsed.distribution,
        "checkpointing": "yes" if parsed.gradient_checkpointing else "no",
        "pictures together": share // parsed.count_parts(share),
    }  # fmt: skip
    assert any(wanted.items() <= row.items() for row in rows)


def test_no_way_promises_more_than_fits():
    for config in (Plan(gpu_memory=24), Plan(gpu_memory=40, gpus=8)):
        recipe = named.find_recipe(config.recipe)
        for way in list_plans(config, recipe):
            together = way.most(config.gpu_memory * GIB, recipe.batch_size // config.gpus)
            assert together == 0 or way.bytes(together) <= config.gpu_memory * GIB
    one = MemoryPlan(optimizer="adamw", fsdp=False, checkpointing=False, alone=10, each=5.0, saved=1, flops=1)
    assert one.most(25, 12) == 4


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recipe": "scenes"}, "full-size ones are sd15"),
        ({"recipe": "sd35lora"}, "did you mean sd35-lora"),
        ({"gpu_memory": 0.0}, "both must be above 0"),
        ({"tflops": 0.0}, "it must be above 0"),
        ({"gpus": 7}, "not a multiple of 7 GPUs"),
        ({"resolution": 100}, "multiple of 64"),
        ({"buckets": "on"}, "needs both --buckets on and --data"),
        ({"data": "cats"}, "needs both --buckets on and --data"),
        ({"method": "tdm"}, "whose updates are others than are counted here"),
        ({"method": "ect"}, "whose updates are others than are counted here"),
    ],
)
def test_plans_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Plan(**wrong)
