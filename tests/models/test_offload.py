"""Where a card is too small for all of a model, its parts take turns on it."""

import dataclasses

import numpy as np
import pytest
import torch

from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import offload, scenes_model
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.offload import count_bytes, settle, take_turns
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline
from miniatures import save_miniature

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return save_miniature("sdxl", tokenizer, tmp_path_factory.mktemp("models") / "sdxl")


def test_parts_come_in_turn_and_the_one_before_leaves(xl, monkeypatch):
    """As on a card, on a device of the mind: where each part was moved is written down."""
    model = load_latent_model(xl, CPU)
    z, prompt = torch.randn(1, *model.codec.shape(16)), ["a red star"]
    plain = model.codec.decode(model.network(z, torch.tensor([9]), model.conditioner.encode(prompt), None).z_0)
    apart = take_turns(model, CPU)
    parts = {id(module): name for name, module in (*model.parts.items(), ("vae", model.codec.autoencoder))}
    seen = []
    for part in offload._list_parts(apart):
        hook = part._hf_hook
        before = hook.prev_module_hook and parts[id(hook.prev_module_hook.model)]
        enter = hook.pre_forward

        def note(module, *given, _enter=enter, _before=before, **more):
            seen.append((parts[id(module)], _before))
            return _enter(module, *given, **more)

        monkeypatch.setattr(hook, "pre_forward", note)
    cond = apart.conditioner.encode(prompt)
    painted = apart.codec.decode(apart.network(z, torch.tensor([9]), cond, None).z_0)
    assert torch.equal(painted, plain)
    assert list(dict.fromkeys(seen)) == [
        ("text_encoder", None), ("text_encoder_2", "text_encoder"), ("unet", "text_encoder_2"), ("vae", "unet"),
    ]  # fmt: skip
    apart.codec.encode(torch.zeros(1, 3, 16, 16))
    assert seen[-1][0] == "vae"


def test_what_rests_in_main_memory_computes_at_home():
    model = load_pipeline("scenes-lcm", "cpu").model
    away = dataclasses.replace(model, home=torch.device("cuda", 1))
    assert away.device == torch.device("cuda", 1)
    assert model.device == CPU
    assert np.array_equal(*(np.asarray(Pipeline(each)("a red star")[0]) for each in (model, take_turns(model, CPU))))


@pytest.mark.parametrize(("gib", "apart"), [(8, True), (24, False)])
def test_auto_looks_at_the_room_on_the_card(monkeypatch, gib, apart):
    card, moved = torch.device("cuda"), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gib * 2**30, 80 * 2**30))  # free, and in all
    monkeypatch.setattr(offload, "take_turns", lambda *_: "apart")
    monkeypatch.setattr(offload, "count_bytes", lambda _: int(10.6 * 2**30))
    monkeypatch.setattr(LatentModel, "to", lambda _, device: moved.append(device) or "whole")
    model = load_latent_model("scenes-lcm", CPU)
    assert settle(model, card, "auto") == ("apart" if apart else "whole")
    assert settle(model, card, "on") == "apart"
    assert settle(model, card, "off") == "whole"
    assert moved == [card] * (1 if apart else 2)
    assert settle(model, CPU, "auto") is model


def test_a_model_that_moves_is_moved_whole():
    model = load_latent_model("scenes-lcm", CPU)
    assert model.to(torch.device("meta")) is model
    parts = [*model.parts.values(), model.codec.autoencoder]
    assert {value.device.type for module in parts for value in module.parameters()} == {"meta"}


def test_without_a_card_it_is_refused_where_it_is_asked_for():
    with pytest.raises(UserError, match="offload is for GPUs and device is cpu"):
        load_pipeline("scenes-lcm", "cpu", offload="on")
    assert load_pipeline("scenes-lcm", "cpu", offload="auto").model.home is None


def test_weights_decoding_and_a_reserve_are_counted():
    model = load_latent_model("scenes-lcm", CPU)
    held = sum(value.numel() for module in offload._list_parts(model) for value in module.parameters()) * 4
    assert count_bytes(model) == held + 64 * 64 * 3072 + 2**30
