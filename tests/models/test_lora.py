"""LoRA adapters and the files that carry them."""

import copy
import json
from functools import partial

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch.func import functional_call

from fewstep.errors import UserError
from fewstep.models.families.stable_diffusion import LORA
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.loading import load_latent_model
from fewstep.models.lora import adapters
from fewstep.models.lora.adapters import AdaptedNetwork, attach, detach
from fewstep.models.lora.combining import combine_loras, merge
from fewstep.models.lora.file import DIFFUSERS_FILE, KOHYA_FILE, Pair, read_lora, write_lora

CPU = torch.device("cpu")
Z, T = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 259])
COND = {"text": torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(1))}
read_lora, write_lora = partial(read_lora, layout=LORA), partial(write_lora, layout=LORA)


@pytest.fixture
def network(wide_teacher):
    return load_latent_model(wide_teacher, CPU).network


@pytest.fixture
def adapted(network):
    """With adapters that do something; alpha is not rank."""
    adapted = AdaptedNetwork(network, rank=6, alpha=9.0, target_modules=LORA.targets)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.weights.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.fixture
def files(adapted, tmp_path):
    assert write_lora(tmp_path, adapted.pairs(adapted.weights), {}, {"unet": adapted.network.backbone}) == 0
    return tmp_path


def test_fresh_adapters_change_nothing_and_alone_learn(wide_teacher, network):
    plain = load_latent_model(wide_teacher, CPU).network
    adapted = AdaptedNetwork(network, 4, 4.0, LORA.targets)
    assert torch.equal(adapted.student(Z, T, COND, None).z_0, plain(Z, T, COND, None).z_0)
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning == {f"unet.{name.removeprefix('unet.')}" for name in adapted.weights.by_name()}
    adapted.student(Z, T, COND, None).z_0.square().mean().backward()
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert any(float(p.grad.abs().max()) > 0 for p in adapted.weights.parameters())


def test_the_teacher_is_the_base_bit_for_bit(wide_teacher, adapted):
    plain = load_latent_model(wide_teacher, CPU).network(Z, T, COND, None)
    assert torch.equal(adapted.teacher(Z, T, COND, None).z_0, plain.z_0)
    assert not torch.allclose(adapted.student(Z, T, COND, None).z_0, plain.z_0, atol=1e-3)
    assert all(p.requires_grad for p in adapted.weights.parameters())


def several(pictures):
    """Z, T and COND, repeated to so many pictures."""
    return (
        *(x.repeat(pictures, *(1,) * (x.dim() - 1))[:pictures] for x in (Z, T)),
        {"text": COND["text"].repeat(pictures, 1, 1)[:pictures]},
        None,
    )


def test_adapters_are_added_to_the_weights_first_where_that_is_less_work(network, monkeypatch):
    adapted, asked = AdaptedNetwork(network, 64, 32.0, LORA.targets), several(16)
    weights, generator = list(adapted.weights.parameters()), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in weights:
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    sums = []
    monkeypatch.setattr(adapters, "functional_call", lambda *args: sums.append(args[1]) or functional_call(*args))
    with torch.no_grad():
        base = adapted.teacher(*asked).z_0
    answers = [answer(*asked).z_0 for answer in (adapted.student, adapted.network)]
    assert len(sums) == 1
    assert float((answers[0] - base).detach().std()) > 0.03  # they act
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    for one, other in zip(*(torch.autograd.grad(each.square().mean(), weights) for each in answers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        adapted.student(*asked)
    network.backbone.enable_gradient_checkpointing()
    adapted.student(*asked)
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("rank", "dtype", "pictures"), [(6, torch.float32, 16), (64, torch.bfloat16, 16), (64, torch.float32, 1)]
)
def test_adapters_stay_beside_the_weights(network, monkeypatch, rank, dtype, pictures):
    """Where they are few, where their sum would be rounded, where one picture would not pay for the sum."""
    adapted = AdaptedNetwork(network, rank, float(rank), LORA.targets, dtype)
    monkeypatch.delattr(adapters, "functional_call")
    assert adapted.student(*several(pictures)).z_0.requires_grad


def test_the_average_answers_with_its_own_weights(adapted):
    average, own = adapted.copy_of_weights(), adapted.student(Z, T, COND, None).z_0
    with adapted.using(average):
        assert torch.equal(adapted.student(Z, T, COND, None).z_0, own)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
    with adapted.using(average):
        torch.testing.assert_close(adapted.student(Z, T, COND, None).z_0, adapted.teacher(Z, T, COND, None).z_0)
    assert torch.equal(adapted.student(Z, T, COND, None).z_0, own)
    assert all(float(parameter.abs().max()) == 0 for parameter in average.parameters())


@pytest.mark.parametrize("file", [DIFFUSERS_FILE, KOHYA_FILE])
def test_what_was_written_is_read_and_hung_on_again(file, files, adapted, wide_teacher):
    fresh = load_latent_model(wide_teacher, CPU).network
    before = fresh(Z, T, COND, None).z_0
    state = copy.deepcopy(fresh.unet.state_dict())
    attach({"unet": fresh.unet}, read_lora(files / file, {"unet": fresh.unet}).pairs, "one", 1.0)
    expected = adapted.student(Z, T, COND, None).z_0
    torch.testing.assert_close(fresh(Z, T, COND, None).z_0, expected, rtol=0, atol=1e-5)
    assert not any(p.requires_grad for p in fresh.parameters())
    detach({"unet": fresh.unet}, "one")
    assert torch.equal(fresh(Z, T, COND, None).z_0, before)
    kept = {name.replace(".base_layer", ""): value for name, value in fresh.unet.state_dict().items()}
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], value) for name, value in state.items())


@pytest.mark.parametrize("file", [DIFFUSERS_FILE, KOHYA_FILE])
def test_diffusers_loads_it_at_the_right_scale(file, files, adapted, wide_teacher):
    pipe = StableDiffusionPipeline.from_pretrained(wide_teacher)
    pipe.load_lora_weights(files, weight_name=file)
    theirs = pipe.unet(Z, T, encoder_hidden_states=COND["text"]).sample
    mine = adapted.network.backbone(Z, T, encoder_hidden_states=COND["text"]).sample
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_scales_act_and_adapters_add(files, wide_teacher):
    network = load_latent_model(wide_teacher, CPU).network
    parts = {"unet": network.backbone}
    pairs = read_lora(files / DIFFUSERS_FILE, parts).pairs
    name = "unet.down_blocks.0.attentions.0.proj_in"
    weight = network.backbone.down_blocks[0].attentions[0].proj_in.weight.clone()
    attach(parts, pairs, "one", 0.5)
    attach(parts, pairs, "two", -0.25)
    layer = network.backbone.down_blocks[0].attentions[0].proj_in
    x = torch.randn(2, weight.shape[1], 4, 4)
    expected = torch.nn.functional.conv2d(
        x, weight + 0.25 * pairs[name].delta().float().view_as(weight), layer.base_layer.bias
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


SPELLINGS = {
    "diffusers, attention processors": lambda part, module, end: (
        f"{part}.{module.removesuffix('.to_q')}.processor.to_q_lora.{'down' if end == 'A' else 'up'}.weight"
    ),
    "diffusers, old": lambda part, module, end: f"{part}.{module}.lora.{'down' if end == 'A' else 'up'}.weight",
    "peft": lambda _part, module, end: f"base_model.model.{module}.lora_{end}.weight",
    "peft, named": lambda part, module, end: f"base_model.model.{part}.{module}.lora_{end}.default.weight",
    "kohya": lambda _part, module, end: (
        f"lora_unet_{module.replace('.', '_')}.lora_{'down' if end == 'A' else 'up'}.weight"
    ),
}
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_from_elsewhere(spelling, network, tmp_path):
    down, up = torch.randn(4, 64), torch.randn(64, 4)
    spelt = SPELLINGS[spelling]
    safetensors.torch.save_file(
        {spelt("unet", QUERY, "A"): down, spelt("unet", QUERY, "B"): up}, tmp_path / "x.safetensors"
    )
    (name, pair), *others = read_lora(tmp_path / "x.safetensors", {"unet": network.backbone}).pairs.items()
    assert (name, others, pair.alpha) == (f"unet.{QUERY}", [], 4.0)
    assert torch.equal(pair.down, down)
    assert torch.equal(pair.up, up)


@pytest.mark.parametrize("end", ["lora_te_", "lora_te1_", "text_encoder."])
def test_adapters_of_the_text_encoder(end, wide_teacher, tmp_path):
    model = load_latent_model(wide_teacher, CPU)
    parts = {"unet": model.network.backbone, **model.conditioner.encoders}
    module = "text_model.encoder.layers.0.self_attn.q_proj"
    key = f"{end}{module.replace('.', '_')}.lora_" if end.startswith("lora") else f"{end}{module}.lora_"
    halves = ("down", "up") if end.startswith("lora") else ("A", "B")
    tensors = {f"{key}{halves[0]}.weight": torch.randn(2, 64), f"{key}{halves[1]}.weight": torch.randn(64, 2)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    before = model.conditioner.encode(["a red star"])["text"]
    attach(parts, read_lora(tmp_path / "x.safetensors", parts).pairs, "style", 1.0)
    assert not torch.allclose(model.conditioner.encode(["a red star"])["text"], before, atol=1e-3)
    detach(parts, "style")
    assert torch.equal(model.conditioner.encode(["a red star"])["text"], before)


def spoilt(tmp_path, **changes):
    tensors = {
        f"unet.{QUERY}.lora_A.weight": torch.randn(4, 64),
        f"unet.{QUERY}.lora_B.weight": torch.randn(64, 4),
    } | changes.pop("tensors", {})
    metadata = {"lora_adapter_metadata": json.dumps(changes)} if changes else None
    path = tmp_path / "spoilt.safetensors"
    safetensors.torch.save_file({name: value for name, value in tensors.items() if value is not None}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensors": {f"unet.{QUERY}.lora_A.weight": torch.randn(4, 65)}}, "does not fit this base"),
        ({"tensors": {"unet.somewhere.else.lora_A.weight": torch.randn(4, 64)}}, "match no module"),
        ({"tensors": {f"unet.{QUERY}.hada_w1_a": torch.randn(64)}}, "LoHa"),
        ({"tensors": {f"unet.{QUERY}.lora_B.weight": None}}, "down alone"),
        ({"tensors": {f"unet.{QUERY}.lora_B.weight": torch.full((64, 4), float("nan"))}}, "NaN"),
        ({"tensors": {f"unet.{QUERY}.alpha": torch.tensor(1e9)}}, "alpha 1e\\+09"),
        ({"tensors": {f"unet.{QUERY}.alpha": torch.tensor(float("nan"))}}, "alpha nan"),
        ({"unet.lora_alpha": 1e9}, "alpha 1e\\+09"),
        (
            {
                "tensors": {
                    f"unet.{QUERY}.lora_A.weight": torch.randn(2000, 64),
                    f"unet.{QUERY}.lora_B.weight": torch.randn(64, 2000),
                }
            },
            "rank 2000",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(changes, said, network, tmp_path):
    state = copy.deepcopy(network.backbone.state_dict())
    with pytest.raises(UserError, match=said):
        read_lora(spoilt(tmp_path, **copy.deepcopy(changes)), {"unet": network.backbone})
    now = network.backbone.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[name], value) for name, value in state.items())


def test_files_that_are_none(network, tmp_path):
    parts = {"unet": network.backbone}
    pickle, cut = tmp_path / "pickle.safetensors", tmp_path / "cut.safetensors"
    torch.save({"a": torch.zeros(3)}, pickle)
    cut.write_bytes(spoilt(tmp_path).read_bytes()[:-50])
    none = {pickle: "is damaged or not", cut: "is damaged or not", tmp_path / "absent.safetensors": "not a file"}
    for path, said in {**none, tmp_path: "not a file"}.items():
        with pytest.raises(UserError, match=said):
            read_lora(path, parts)


def test_delta_is_the_product_at_its_scale():
    pair = Pair(torch.randn(3, 5, 3, 3), torch.randn(4, 3, 1, 1), alpha=6.0)
    expected = 2 * torch.einsum("or,rikl->oikl", pair.up[..., 0, 0].double(), pair.down.double())
    torch.testing.assert_close(pair.delta(), expected)


def random_lora(network, rank, alpha, seed, modules):
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in modules:
        out, into, *kernel = network.backbone.get_submodule(name).weight.shape
        down = torch.randn(rank, into, *kernel, generator=generator)
        up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
        pairs[f"unet.{name}"] = Pair(down, up, alpha)
    return pairs


def test_combining_adds_weight_deltas(network):
    convolution = "down_blocks.0.resnets.0.conv1"
    lcm = random_lora(network, 3, 6.0, 0, [QUERY, convolution])
    style = random_lora(network, 2, 1.0, 1, [convolution])
    loras = [(lcm, 1.0), (style, 0.8)]
    by_hand = {
        f"unet.{QUERY}": lcm[f"unet.{QUERY}"].delta(),
        f"unet.{convolution}": lcm[f"unet.{convolution}"].delta() + 0.8 * style[f"unet.{convolution}"].delta(),
    }
    one = combine_loras(loras)
    assert {name: pair.rank for name, pair in one.items()} == {f"unet.{QUERY}": 3, f"unet.{convolution}": 5}
    for name, expected in by_hand.items():
        torch.testing.assert_close(one[name].delta(), expected, rtol=1e-5, atol=1e-5)
    before = {name: network.backbone.get_submodule(name[5:]).weight.double() for name in by_hand}
    state = copy.deepcopy(network.backbone.state_dict())
    merge({"unet": network.backbone}, loras)
    for name, expected in by_hand.items():
        now = network.backbone.get_submodule(name[5:]).weight
        torch.testing.assert_close(now, (before[name] + expected).float(), rtol=1e-6, atol=1e-6)
    untouched = state.keys() - {f"{name[5:]}.weight" for name in by_hand}
    assert all(torch.equal(network.backbone.state_dict()[name], state[name]) for name in untouched)


def test_the_papers_number_of_parameters_on_stable_diffusion_15(sd_schedule):
    """67.25 M on 278 modules, as in the released LCM-LoRA; on the meta device, which holds no weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
        )
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    network = UNetNetwork(unet.requires_grad_(False), sd_schedule, "epsilon")
    weights = AdaptedNetwork(network, 64, 64.0, LORA.targets).weights
    assert sum(p.numel() for p in weights.parameters()) == 67_252_224
    assert len(list(weights.parameters())) == 2 * 278


def test_adapters_begin_as_the_seed_says_whatever_was_drawn_before(wide_teacher):
    begun = []
    for before, seed in ((0, 3), (1, 3), (0, 4)):
        torch.manual_seed(before)
        network = load_latent_model(wide_teacher, CPU).network
        begun.append(AdaptedNetwork(network, 4, 4.0, LORA.targets, seed=seed).weights.by_name())
    same, other = begun[1:]
    for name, value in begun[0].items():
        assert torch.equal(value, same[name])
        if ".lora_A." in name:
            bound = (4 / value.numel()) ** 0.5
            assert 0.8 * bound < float(value.detach().abs().max()) <= bound
            assert not torch.equal(value, other[name])
        else:
            assert not value.any()
