"""Changing an option of `distill` changes something: the weights, or what is written."""

import dataclasses

import pytest
import torch

from fewstep.commands.distill import distill, load_teacher, make_path, make_student
from fewstep.commands.generate import Generate
from fewstep.errors import UserError
from fewstep.models.encoding import FreshLatents, KeptLatents
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material


@pytest.fixture(scope="module")
def base(random_teacher):
    return Distill(
        teacher=str(random_teacher), steps=2, batch_size=4, pictures=16, lr=1e-3, ema_decay=0.5, sample_every=0,
        loss_weight="constant", skip=20,
    )  # fmt: skip


def gradient(config):
    """The gradient of the first batch, which every option of the method must reach."""
    teacher = load_teacher(config)
    torch.manual_seed(0)
    student = make_student(config, teacher)
    latents, path = open_material(config, teacher).latents(), make_path(config, student, teacher)
    task = make_task(config, student, path, teacher, latents)
    # A student whose ω input, or whose adapters, are zero and that equals its target would hide some options.
    for name, parameter in task.student.named_parameters():
        if "cond_proj" in name or "lora_B" in name or "class_embedding.linear_2" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    task.loss(range(4)).total.backward()
    return torch.cat([p.grad.flatten() for p in task.student.parameters()])


@pytest.fixture(scope="module")
def plain(base):
    return gradient(base)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"pictures": 12}, {"guidance_range": (2.0, 9.0)}, {"solver": "dpm-solver-2"},
        {"solver": "dpm-solver++2s"}, {"solver": "midpoint"}, {"skip": 50}, {"times": "any"}, {"distance": "l2"},
        {"huber_c": 0.1}, {"loss_weight": "truncated-snr"}, {"ema_decay": 0.0}, {"shrink": 0.5}, {"guided_from": 600},
        {"method": "any-step"}, {"method": "pcm"}, {"method": "tcd"}, {"method": "guided-distill"},
        {"distance": "root"}, {"distance": "cauchy"}, {"loss_weight": "equal-jumps"}, {"loss_weight": "inverse-gap"},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_the_method_reach_the_gradient(base, plain, change):
    changed = gradient(dataclasses.replace(base, **change))
    assert torch.isfinite(changed).all()
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("method", ["pcm", "any-step"])
def test_numbers_of_phases_reach_the_gradient(base, method):
    other = {"pcm": (2,), "any-step": (1, 3)}[method]
    config = dataclasses.replace(base, method=method)
    assert not torch.equal(gradient(config), gradient(dataclasses.replace(config, phases=other)))


def test_auto_is_what_the_method_names(base, plain):
    assert torch.equal(plain, gradient(dataclasses.replace(base, loss_weight="auto", distance="auto")))
    assert torch.equal(plain, gradient(dataclasses.replace(base, distance="huber")))
    named = dataclasses.replace(base, method="guided-distill", loss_weight="auto")
    assert torch.equal(gradient(named), gradient(dataclasses.replace(named, loss_weight="truncated-snr")))
    assert not torch.equal(gradient(named), gradient(dataclasses.replace(named, loss_weight="constant")))


def test_the_same_settings_give_the_same_gradient(base, plain):
    assert torch.equal(plain, gradient(base))


@pytest.fixture(scope="module")
def lora(base):
    return dataclasses.replace(base, lora_rank=4, guidance_range=(4.0, 4.0), guidance_scale=4.0)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_rank": 5}, {"lora_alpha": 8.0}, {"guidance_range": (5.0, 5.0), "guidance_scale": 5.0},
        {"solver": "dpm-solver-2"}, {"skip": 50}, {"huber_c": 0.1}, {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_options_reach_the_gradient_of_adapters(lora, change):
    assert not torch.equal(gradient(lora), gradient(dataclasses.replace(lora, **change)))


@pytest.mark.parametrize("change", [{}, {"lora_rank": 4, "guidance_range": (4.0, 4.0), "guidance_scale": 4.0}], ids=str)
def test_gradient_checkpointing_changes_what_is_kept_and_nothing_else(base, change, monkeypatch):
    asked = []
    real = torch.utils.checkpoint.checkpoint

    def counting(*args, **kwargs):
        asked.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counting)
    config = dataclasses.replace(base, **change)
    expected = gradient(config)
    assert not asked
    found = gradient(dataclasses.replace(config, gradient_checkpointing=True))
    assert asked
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_without_ema_the_student_itself_is_exported(base):
    config = dataclasses.replace(base, ema_decay=0.0)
    student = make_student(config, load_teacher(config))
    assert (student.learner.averaged, student.learner.target) == (None, None)
    with student.exported() as exported:
        assert exported.network is student.learner.weights


def test_kept_and_fresh_latents_are_the_same(base):
    teacher = load_teacher(base)
    kept, fresh = (open_material(dataclasses.replace(base, keep_gib=gib), teacher).latents() for gib in (4.0, 0.0))
    assert isinstance(kept, KeptLatents)
    assert isinstance(fresh, FreshLatents)
    assert kept.shape_at(range(1)) == fresh.shape_at(range(1))
    noise = torch.randn(3, *kept.shape_at(range(1)))
    one, other = kept.batch(range(14, 17), noise), fresh.batch(range(14, 17), noise)
    torch.testing.assert_close(one.z_0, other.z_0, rtol=1e-3, atol=2e-4)  # batches of 16 and of 3 round apart
    torch.testing.assert_close(one.cond["text"], other.cond["text"], rtol=1e-4, atol=1e-5)


def test_guidance_scale_and_skip_reach_the_export(base, tmp_path):
    import fewstep

    distill(dataclasses.replace(base, out=tmp_path / "run", guidance_scale=7.0, skip=50, steps=1))
    pipe = fewstep.load(tmp_path / "run" / "model")
    assert pipe.guidance_scale == 7.0
    assert pipe.grid_size == 20


@pytest.mark.parametrize(
    "changes", [{"distance": "manhattan"}, {"solver": "heun"}, {"loss_weight": "min-snr"}, {"lr_decay": "step"}]
)
def test_a_value_that_a_choice_does_not_offer_is_refused_in_python_too(changes):
    with pytest.raises(UserError, match="allowed:"):
        Distill(**changes)


def test_a_prompt_that_is_no_utf8_is_refused():
    for values in ({"prompt": ("a", "caf\udce9")}, {"prompt": ("a",), "negative_prompt": "\ud800"}):
        with pytest.raises(UserError, match=r"the prompt '.*\\ud.*' is not UTF-8; give it as UTF-8"):
            Generate(**values)
