"""Transformers and LoRAs under the names that the families' first code gives their modules."""

import pytest
import torch
from diffusers.loaders import single_file_utils
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from fewstep.commands.inspect import describe
from fewstep.errors import UserError
from fewstep.models.families import recognise_file
from fewstep.models.families.original_transformers import FLUX_NAMES
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import KOHYA_FILE, Pair, read_lora, write_lora
from fewstep.models.options import Overrides
from flow_loading import copy_model, copy_stock
from flow_miniatures import save_sd3, to_original

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(flow):
    return to_original(copy_model(flow))


@pytest.mark.parametrize("spelling", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer."])
def test_a_transformer_alone_over_a_base(prefix, spelling, flow, original, tmp_path):
    base, file = copy_model(flow), tmp_path / "transformer.safetensors"
    tensors = original if spelling == "original" else base.network.backbone.state_dict()
    save_file({prefix + name: value for name, value in tensors.items()}, file)
    assert recognise_file(file).name == base.family.name
    assert not [line for line in describe(file) if "not read" in line]
    for model in (
        load_latent_model(file, CPU, str(flow)), load_latent_model(flow, CPU, overrides=Overrides(unet=str(file))),
    ):  # fmt: skip
        mine, theirs = model.network.backbone.state_dict(), base.network.backbone.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
        assert not any(value.requires_grad for value in model.network.parameters())
        assert model.resolution == base.resolution
        assert torch.equal(*(each.schedule.alpha(torch.arange(1000)) for each in (model, base)))
        cond, z, t = base.conditioner.encode(["a red star"]), torch.zeros(1, *base.codec.shape(64)), torch.tensor([500])
        same = base.network.with_backbone(model.network.backbone)
        with torch.no_grad():  # with what is no weight too, such as tables of places
            assert torch.allclose(same(z, t, cond, None).z_0, base.network(z, t, cond, None).z_0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_lora_of_all_modules_is_no_transformer(prefix, flow, original, tmp_path):
    modules = {name.rpartition(".")[0] for name in (*original, *copy_model(flow).network.backbone.state_dict())}
    keys = (f"{prefix}{module}.lora_{half}.weight" for module in modules for half in "AB")
    save_file({key: torch.zeros(4, 4) for key in keys}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="is a LoRA, not a model"):
        recognise_file(tmp_path / "lora.safetensors")


def test_every_tensor_has_its_place(flow, original):
    """The table names all of them, none twice."""
    state = copy_model(flow).network.backbone.state_dict()
    assert sum(value.numel() for value in original.values()) == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_is_read(scaled, flow, original, tmp_path):
    file, tensors = tmp_path / "transformer.safetensors", {}
    for name, value in original.items():
        if value.ndim < 2 or not name.endswith("weight"):
            tensors[name] = value
            continue
        scale = value.abs().max() / 400 if scaled else torch.tensor(1.0)
        tensors[name] = (value / scale).to(torch.float8_e4m3fn)
        if scaled:
            tensors[name.replace("weight", "scale_weight")] = scale
            tensors[name.replace("weight", "comfy_quant")] = torch.zeros(26, dtype=torch.uint8)  # JSON
    save_file(tensors, file)
    mine = load_latent_model(file, CPU, str(flow)).network.backbone.state_dict()
    for name, value in copy_model(flow).network.backbone.state_dict().items():
        assert mine[name].dtype == torch.float32
        assert torch.allclose(mine[name], value, rtol=0.07, atol=float(value.abs().max()) / 400 if scaled else 1e-3)


@pytest.mark.parametrize("how", ["lacks", "left over", "size"])
def test_what_does_not_fit_is_named(how, flow, original, tmp_path):
    file, tensors = tmp_path / "transformer.safetensors", dict(original)
    name = next(each for each in tensors if each.endswith(("qkv.weight", "to_q.weight")))
    if how == "lacks":
        del tensors[name]
    elif how == "left over":
        tensors["another.weight"] = torch.zeros(2)
    else:
        tensors[name] = torch.zeros(6, 2)
    save_file(tensors, file)
    said = {"lacks": f"it lacks {name}", "left over": "it has left over another.weight", "size": "of other sizes than"}
    with pytest.raises(UserError, match=said[how]):
        load_latent_model(file, CPU, str(flow))


def test_without_a_base_it_says_what_to_give(original, tmp_path):
    save_file(original, tmp_path / "transformer.safetensors")
    with pytest.raises(UserError, match="give that with --base-config"):
        load_latent_model(tmp_path / "transformer.safetensors", CPU)


@pytest.mark.parametrize("large", [False, True])
def test_the_table_of_stable_diffusion_3_is_diffusers_own(large, flow_tokenizer, tmp_path):
    model = load_latent_model(save_sd3(flow_tokenizer, tmp_path / "sd3", large=large), CPU)
    theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(to_original(model))
    mine = model.network.backbone.state_dict()
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], value) for name, value in mine.items())


def test_the_table_of_sana_is_diffusers_own(make_flow, tmp_path):
    """With what its files hold beside, which nothing here reads."""
    folder = make_flow("sana")
    tensors = to_original(model := copy_model(folder))
    tensors |= {"pos_embed": torch.zeros(1, 4, 64), "y_embedder.y_embedding": torch.zeros(300, 32)}
    mine = model.network.backbone.state_dict()
    theirs = single_file_utils.convert_sana_transformer_to_diffusers(dict(tensors))
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], value) for name, value in mine.items())
    save_file(tensors, tmp_path / "file.safetensors")
    found = load_latent_model(tmp_path / "file.safetensors", CPU, str(folder)).network.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in mine.items())


def test_the_table_of_flux_is_diffusers_own():
    """At its own size, which diffusers takes for granted, with one column in place of all."""
    width, tensors = 3072, {}
    rows = {
        "qkv": 3 * width, "linear1": 7 * width, "mlp.0": 4 * width, "mod.lin": 6 * width, "modulation.lin": 3 * width,
        "adaLN_modulation.1": 2 * width, "norm": 128,
    }  # fmt: skip
    double, single = FLUX_NAMES.blocks.values()
    modules = [f"double_blocks.0.{name}" for name in double] + [f"single_blocks.0.{name}" for name in single]
    for module in [*modules, *FLUX_NAMES.outside]:
        count = next((n for end, n in rows.items() if module.endswith(end) or (end == "norm" and end in module)), width)
        kinds = ("scale",) if "_norm" in module else ("weight", "bias")
        for kind in kinds:
            tensors[f"{module}.{kind}"] = torch.rand(count, *([1] if kind == "weight" else []))
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(tensors))
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    mine = FLUX_NAMES.convert(lambda name: tensors[name], shapes)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


SPELLINGS = {
    "diffusion_model": ("diffusion_model.{}", "lora_A.weight", "lora_B.weight"),
    "kohya": ("lora_unet_{}", "lora_down.weight", "lora_up.weight"),
    "bare": ("{}", "lora_A.weight", "lora_B.weight"),
    "peft": ("base_model.model.{}", "lora_A.weight", "lora_B.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_of_the_originals_modules_adds_what_it_adds_there(spelling, flow, original, tmp_path):
    """ΔW of every original module, added to the original's weights and converted, is ΔW of the modules in diffusers."""
    model = copy_model(flow)
    form, a, b = SPELLINGS[spelling]
    generator, tensors, moved = torch.Generator().manual_seed(0), {}, dict(original)
    lists = tuple(f"{theirs}." for theirs, _ in model.family.original.blocks) or ("transformer_blocks.",)
    for key, weight in original.items():
        module, _, kind = key.rpartition(".")
        adapted = module.startswith(lists) or module.endswith(".adaLN_modulation.1")
        if weight.ndim != 2 or kind != "weight" or not adapted:
            continue
        down, up = (torch.randn(shape, generator=generator) for shape in ((2, weight.shape[1]), (len(weight), 2)))
        spelt = form.format(module.replace(".", "_") if spelling == "kohya" else module)
        tensors |= {f"{spelt}.{a}": down, f"{spelt}.{b}": up, f"{spelt}.alpha": torch.tensor(1.0)}
        moved[key] = weight + up @ down / 2
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file(moved, tmp_path / "moved.safetensors")
    wanted = load_latent_model(tmp_path / "moved.safetensors", CPU, str(flow)).network.backbone.state_dict()
    found = load_latent_model(flow, CPU, overrides=Overrides(base_lora=(str(tmp_path / "lora.safetensors"),)))
    before = model.network.backbone.state_dict()
    changed = 0
    for name, value in found.network.backbone.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-5), name
        changed += not torch.equal(value, before[name])
    assert changed >= len(tensors) // 3


def test_kohyas_file_of_diffusers_names_is_read_too(flow, tmp_path):
    model = copy_model(flow)
    ends = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn1.to_q", "layers.0.attention.to_q")
    module = next(name for name, _ in model.network.backbone.named_modules() if name in ends)
    weight = model.network.backbone.get_submodule(module).weight
    spelt = f"lora_transformer_{module.replace('.', '_')}"
    down, up = torch.ones(1, weight.shape[1]), torch.ones(len(weight), 1)
    save_file(
        {f"{spelt}.lora_down.weight": down, f"{spelt}.lora_up.weight": up, f"{spelt}.alpha": torch.tensor(0.5)},
        tmp_path / "lora.safetensors",
    )
    moved = load_latent_model(flow, CPU, overrides=Overrides(base_lora=(f"{tmp_path / 'lora.safetensors'}:2",)))
    assert torch.allclose(moved.network.backbone.get_submodule(module).weight, weight + 1.0)


BEHIND = [f"{begin}{name}" for begin in ("", "base_model.model.") for name in ("diffusion_model", "transformer")]


def test_diffusers_names_are_read_behind_every_trainers_prefix(flow, tmp_path):
    """Several trainers write them behind the original's, of every family alike."""
    model = copy_model(flow)
    pairs = random_lora(model, alpha=3.0)
    for prefix in (*BEHIND, "model.diffusion_model"):
        spelt = {name: f"{prefix}.{name.removeprefix('transformer.')}" for name in pairs}
        tensors = {f"{spelt[name]}.lora_A.weight": pair.down for name, pair in pairs.items()}
        save_file(
            tensors | {f"{spelt[name]}.lora_B.weight": pair.up for name, pair in pairs.items()},
            tmp_path / "l.safetensors",
        )
        found = read_lora(tmp_path / "l.safetensors", model.parts, model.family.lora).pairs
        assert found.keys() == pairs.keys()
        assert all(torch.equal(pair.delta(), pairs[name].delta()) for name, pair in found.items())


def random_lora(model, ranks=(3,), alpha=6.0):
    """Adapts what a LoRA adapts by default, its modules of `ranks` in turn."""
    generator = torch.Generator().manual_seed(0)
    ends = tuple(f".{target}" for target in model.family.lora.targets)
    pairs = {}
    for name, module in model.network.backbone.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(ends):
            rank, (rows, inputs) = ranks[len(pairs) % len(ranks)], module.weight.shape
            down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, inputs), (rows, rank)))
            pairs[f"transformer.{name}"] = Pair(down, up, alpha)
    return pairs


@pytest.mark.parametrize("ranks", [(3,), (2, 3)])
def test_kohyas_file_is_read_as_diffusers_is(ranks, flow, tmp_path):
    """Where several modules are one there, each has its own columns; of other ranks they are filled up."""
    model = copy_model(flow)
    pairs = random_lora(model, ranks)
    del pairs[next(name for name in pairs if name.endswith("to_k"))]  # one of three that may be one
    assert write_lora(tmp_path, pairs, {}, model.parts, model.family.lora) == 0
    if model.family.lora.kohya_modules is None:
        assert not (tmp_path / KOHYA_FILE).exists()
        return
    found = read_lora(tmp_path / KOHYA_FILE, model.parts, model.family.lora).pairs
    assert found.keys() >= pairs.keys()
    for name, pair in found.items():
        wanted = pairs[name].delta() if name in pairs else torch.zeros_like(pair.delta())
        assert torch.allclose(pair.delta(), wanted, atol=1e-5)
        assert pair.rank <= max(ranks)


def test_what_xlabs_wrote_for_flux_is_read_as_diffusers_does(make_flow, tmp_path):
    flow, generator, tensors = make_flow("flux"), torch.Generator().manual_seed(0), {}
    model = copy_model(flow)
    single = "single_blocks.0.processor"
    modules = {
        f"double_blocks.0.processor.{name}": (32, rows)
        for name, rows in (("qkv_lora1", 96), ("proj_lora1", 32), ("qkv_lora2", 96), ("proj_lora2", 32))
    } | {f"{single}.qkv_lora": (32, 96), f"{single}.proj_lora": (160, 32)}
    for name, (inputs, rows) in modules.items():
        tensors[f"{name}.down.weight"] = torch.randn(2, inputs, generator=generator)
        tensors[f"{name}.up.weight"] = torch.randn(rows, 2, generator=generator)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    pipe = copy_stock(flow)
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    hung = {name: each for name, each in pipe.transformer.named_modules() if isinstance(each, LoraLayer)}
    found = read_lora(file, model.parts, model.family.lora).pairs
    assert {name.removeprefix("transformer.") for name in found} == hung.keys()
    for name, layer in hung.items():
        assert torch.allclose(
            layer.get_delta_weight("default_0"), found[f"transformer.{name}"].delta().float(), atol=1e-4
        )
    assert "LoRA: XLabs keys" in [*describe(file)]


def test_kohyas_file_is_loaded_by_diffusers(flow, tmp_path):
    """Module by module; of FLUX's single blocks diffusers knows the released size alone."""
    model = copy_model(flow)
    if model.family.lora.kohya_modules is None:
        return
    pairs = {name: pair for name, pair in random_lora(model).items() if "single_" not in name}
    write_lora(tmp_path, pairs, {}, model.parts, model.family.lora)
    pipe = copy_stock(flow)
    pipe.load_lora_weights(tmp_path, weight_name=KOHYA_FILE)
    for name, pair in pairs.items():
        layer = pipe.transformer.get_submodule(name.removeprefix("transformer."))
        assert torch.allclose(layer.get_delta_weight("default_0"), pair.delta().float(), atol=1e-4)
