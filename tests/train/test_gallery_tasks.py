"""Latents that are blocks' components, what the text encoder's last tokens say, and Muon."""

import math

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from fewstep.data import draws
from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.gallery_art import find_kind, group_by_kind, list_names
from fewstep.data.worlds.gallery_drawing import expect_placement
from fewstep.data.worlds.gallery_scene import GROUNDS, Asked, GalleryPrompt
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.teacher.blocks import BlockAutoencoderTask, BlockCode
from fewstep.teacher.gallery_tasks import (
    LOOKS,
    PATCHES,
    SlotTask,
    expect_slots,
    list_looks,
    list_stated,
    list_statements,
    list_waves,
)
from fewstep.teacher.muon import Muon
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.role import Role
from fewstep.train.task import Loss, StudentTask


@pytest.fixture(scope="module")
def pictures():
    return to_pixels([Gallery(seed=3)[i].image for i in range(200)])


def test_blocks_are_rebuilt_best_by_their_first_components(pictures, tmp_path):
    errors = []
    for channels in (4, 32, 192):
        code = BlockCode.fit(pictures, channels)
        latents = code.encode(pictures)
        assert latents.shape == (200, channels, 8, 8)
        assert latents.square().mean() == pytest.approx(1, abs=1e-3)
        errors.append(float((code.decode(latents) - pictures).square().mean()))
    assert errors[0] > 2 * errors[1] > 0
    assert errors[2] < 1e-8
    random = torch.linalg.qr(torch.randn(192, 32, generator=torch.Generator().manual_seed(0))).Q
    other = BlockCode(code.mean, random, torch.ones(32))
    assert float((other.decode(other.encode(pictures)) - pictures).square().mean()) > 10 * errors[1]
    code.save(tmp_path / "code.safetensors")
    read = BlockCode.load(tmp_path / "code.safetensors")
    assert torch.equal(read.encode(pictures[:2]), code.encode(pictures[:2]))


def test_encoder_and_decoder_learn_the_code_each_by_itself(pictures, tmp_path):
    torch.manual_seed(0)
    code = BlockCode.fit(pictures, 8)
    task = BlockAutoencoderTask(scenes_model.build_autoencoder(8), code, lambda _: pictures[:8], seed=0)

    def differentiate():
        task.student.zero_grad()
        task.loss(range(8)).total.backward()
        return {name: p.grad.clone() for name, p in task.student.named_parameters()}

    first = differentiate()
    with torch.no_grad():
        task.student.encoder.conv_in.weight.mul_(2)
    second = differentiate()
    halves = [name for name in first if name.endswith("conv_in.weight")]
    assert {name.partition(".")[0] for name in halves} == {"encoder", "decoder"}
    assert all(first[name].any() for name in halves)
    alike = {name.partition(".")[0] for name in first if torch.equal(first[name], second[name])}
    assert alike == {"decoder", "post_quant_conv"}  # hear nothing of the encoder
    before = float(task.loss(range(8)).total)
    fit(task, LoopConfig(steps=30, batch_size=8, lr=2e-3, ema_decay=0.5), tmp_path, "autoencoder")
    assert float(task.loss(range(8)).total) < before / 2


def test_what_a_network_sees_in_a_reconstruction_counts_too(pictures):
    torch.manual_seed(0)
    autoencoder, x, code = scenes_model.build_autoencoder(8), pictures[:2], BlockCode.fit(pictures, 8)
    losses = [
        BlockAutoencoderTask(autoencoder, code, lambda _: x, 0, features).loss(range(2)).total
        for features in (None, lambda pixels: 3 * pixels, lambda pixels: 0 * pixels)
    ]
    latents = code.encode(x)
    noise = BlockAutoencoderTask.NOISE * draws.normal(0, "vae", range(2), latents.shape[1:])
    error = autoencoder.decode(latents + noise).sample - x
    added = BlockAutoencoderTask.FEATURE_WEIGHT * 9 * error.square().mean() * 2  # a loss is a sum over samples
    torch.testing.assert_close(losses[1] - losses[0], added, rtol=1e-4, atol=1e-6)
    assert torch.equal(losses[2], losses[0])


def test_slots_hold_what_is_to_be_expected():
    cat, pizza = (list_looks()[list_names().index(name)] for name in ("cat", "pizza"))
    prompt = GalleryPrompt((Asked("cat", size="big"), Asked("pizza")), "side by side", "sand")
    first, second, third = expect_slots(prompt).split(PATCHES**2)
    assert torch.equal(first[:, :LOOKS], cat)
    assert torch.equal(second[:, :LOOKS], pizza)
    told = LOOKS + list_waves().shape[-1]
    assert (first[:, told : told + 2] == torch.tensor([0.0, 1.0])).all()
    assert (second[:, told : told + 2] == 0.5).all()
    assert not third.any()
    places = slice(told + 2, -len(GROUNDS) - 1)
    assert (first[:, places].sum(1) == 1).all()
    assert ((first[:, places] - second[:, places]).abs().sum(1) == 2).all()  # each at a place of its own
    kind = find_kind("cat")
    of_kind = expect_slots(GalleryPrompt((Asked(kind=kind),), None, None))[: PATCHES**2]
    alike = [list_names().index(name) for name in group_by_kind()[kind]]
    torch.testing.assert_close(of_kind[:, :LOOKS], list_looks()[alike].mean(0))
    nothing = expect_slots(GalleryPrompt(None, None, None))[:, -1].reshape(3, -1)
    torch.testing.assert_close(nothing[:, 0], torch.tensor([1, 2 / 3, 1 / 3]))  # one, two or three things


def test_parts_lie_where_things_are_drawn():
    """The sine of half a turn over the picture's width: the first wave of a part's column."""
    prompt = GalleryPrompt((Asked("cat", size="big"), Asked("pizza", size="small")), "side by side", None)
    waves = expect_slots(prompt)[:, LOOKS : LOOKS + list_waves().shape[-1]]
    for number, (at, size) in enumerate(((16, "big"), (48, "small"))):
        x, y, length = expect_placement("side by side", number, size)
        assert (x, y) == (at, 32)
        part = waves[PATCHES**2 * number]  # at the top, on the left
        left, right = (math.sin(math.pi * (x + sign * 3 / 8 * length) / 64) for sign in (-1, 1))
        assert part[0] == pytest.approx(left, abs=1e-5)
        assert part[6] == pytest.approx(right, abs=1e-5)  # as it is when mirrored
        assert part[12] == pytest.approx(math.sin(math.pi * (y - 3 / 8 * length) / 64), abs=1e-5)


def test_the_last_tokens_come_to_say_how_things_look(tmp_path):
    gallery = Gallery(level="exact")
    captions, prompts = zip(*(gallery.prompt(i) for i in range(300)), strict=True)
    tokenizer = scenes_model.build_tokenizer(captions, 77)
    tokens = tokenizer([*captions], padding="max_length", return_tensors="pt").input_ids
    assert tokens.shape == (300, 77)
    expected = torch.stack([expect_slots(prompt) for prompt in prompts])
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    encoder = CLIPTextModel(CLIPTextConfig(**sizes, **ids))
    task = SlotTask(encoder, tokens, list_statements(), [*map(list_stated, prompts)], expected, 0)

    def miss():
        with torch.no_grad():
            found = task.averaged["slots"](task.averaged["text_encoder"](tokens)[0][:, -48:])
        return float((found - expected).square().mean())

    before = miss()
    fit(task, LoopConfig(steps=60, batch_size=32, lr=3e-3, warmup_steps=10, ema_decay=0.9), tmp_path, "text")
    assert miss() < 0.75 * before


class Matching(StudentTask):
    """Brings a matrix to a target of which one direction counts a thousand times less."""

    def __init__(self, make_optimizer) -> None:
        torch.manual_seed(0)
        self.student, self.averaged = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)), None
        self.make = make_optimizer
        self.x, self.y = torch.randn(64, 6) * torch.tensor([1, 1, 1, 1, 1, 0.03]), torch.randn(64, 4)

    @property
    def roles(self):
        return (Role(weights=self.student, make_optimizer=self.make),)

    def loss(self, counters):
        return Loss.from_mean((self.student(self.x) - self.y).square().mean(), counters)


def test_muon_moves_all_directions_alike_and_goes_on_after_a_break(tmp_path):
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 20) * torch.logspace(-2, 1, 20)
    optimizer = Muon(nn.Linear(2, 2), LoopConfig())
    for shown in (matrices, matrices.mT):
        singular = torch.linalg.svdvals(optimizer.orthogonalise(shown).float())
        assert singular.min() > 0.5
        assert singular.max() < 1.35

    def run(folder, steps):
        task = Matching(lambda weights, settings: Muon(weights, settings, as_vectors=("1.",)))
        fit(task, LoopConfig(steps=steps, batch_size=2, lr=1e-2, checkpoint_every=5), folder, "matching")
        return task

    begun = Matching(None)
    whole = run(tmp_path / "whole", 20)
    assert float(whole.loss(range(1)).total) < 0.9 * float(begun.loss(range(1)).total)
    run(tmp_path / "parts", 10)
    with pytest.raises(UserError, match=r"exp_avg, which are no optimiser's moments"):  # not for AdamW to go on with
        fit(Matching(None), LoopConfig(steps=20, batch_size=2, lr=1e-2, checkpoint_every=5), tmp_path / "parts", "as")
    with pytest.raises(ValueError, match=r"weight_decay is 0\.1"):
        Muon(nn.Linear(2, 2), LoopConfig(weight_decay=0.1))
    joined = run(tmp_path / "parts", 20)
    for one, other in zip(whole.student.parameters(), joined.student.parameters(), strict=True):
        assert torch.equal(one, other)
