"""Changing an option of `distill` changes something: the weights, or what is written."""

import dataclasses

import pytest
import torch

from fewstep.models.encoding import FreshLatents, KeptLatents, encode
from fewstep.recipes.distill import Distill, distill, exported, load_teacher, make_task, open_pictures


@pytest.fixture(scope="module")
def base(random_teacher):
    return Distill(
        teacher=str(random_teacher), steps=2, batch_size=4, pictures=16, lr=1e-3, ema_decay=0.5, sample_every=0,
        loss_weight="constant", skip=20,
    )  # fmt: skip


def gradient(config):
    """The gradient of the first batch, which every option of the method must reach."""
    teacher = load_teacher(config)
    task = make_task(config, teacher, open_pictures(config, teacher.resolution), teacher.resolution)
    # A student whose ω input is zero and that equals its target would hide some options.
    torch.manual_seed(0)
    torch.nn.init.normal_(task.student.unet.time_embedding.cond_proj.weight, std=0.02)
    task.loss(range(4)).backward()
    return torch.cat([p.grad.flatten() for p in task.student.parameters()])


@pytest.fixture(scope="module")
def plain(base):
    return gradient(base)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"pictures": 12}, {"guidance_range": (2.0, 9.0)}, {"solver": "dpm-solver-2"},
        {"solver": "dpm-solver++2s"}, {"skip": 50}, {"times": "any"}, {"distance": "l2"}, {"huber_c": 0.1},
        {"loss_weight": "truncated-snr"}, {"ema_decay": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_the_method_reach_the_gradient(base, plain, change):
    changed = gradient(dataclasses.replace(base, **change))
    assert torch.isfinite(changed).all()
    assert not torch.equal(plain, changed)


def test_the_same_settings_give_the_same_gradient(base, plain):
    assert torch.equal(plain, gradient(base))


def test_without_ema_the_student_itself_is_exported(base):
    config = dataclasses.replace(base, ema_decay=0.0)
    teacher = load_teacher(config)
    task = make_task(config, teacher, open_pictures(config, 64), 64)
    assert exported(task) is task.student


def test_kept_and_fresh_latents_are_the_same(base):
    teacher = load_teacher(base)
    pictures = open_pictures(base, 64)
    kept, fresh = encode(teacher, pictures, 64, keep_gib=4), encode(teacher, pictures, 64, keep_gib=0)
    assert isinstance(kept, KeptLatents)
    assert isinstance(fresh, FreshLatents)
    assert len(kept) == len(fresh) == 16
    assert kept.latent_shape == fresh.latent_shape
    noise = torch.randn(3, *kept.latent_shape)
    (z, cond), (other_z, other_cond) = kept.batch([5, 0, 5], noise), fresh.batch([5, 0, 5], noise)
    torch.testing.assert_close(z, other_z, rtol=1e-3, atol=2e-4)  # batches of 16 and of 3 round apart
    torch.testing.assert_close(cond["text"], other_cond["text"], rtol=1e-4, atol=1e-5)


def test_guidance_scale_and_skip_reach_the_export(base, tmp_path):
    import fewstep

    distill(dataclasses.replace(base, out=tmp_path / "run", guidance_scale=7.0, skip=50, steps=1))
    pipe = fewstep.load(tmp_path / "run" / "model")
    assert pipe.guidance_scale == 7.0
    assert pipe.grid_size == 20
