"""What does not fit is refused in a line, and never read as something else."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fewstep.commands.combine import Combine, combine
from fewstep.commands.inspect import describe
from fewstep.errors import UserError
from fewstep.models.card import CARD_FILE
from fewstep.models.engines import with_engine
from fewstep.models.families import find_family, original_transformers
from fewstep.models.families.transformer_checks import find_released_name
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import read_lora
from fewstep.models.options import Overrides, read_overrides
from fewstep.models.pipeline_loading import load_pipeline
from flow_loading import copy_model
from flow_miniatures import FLOWS, FUSED, to_original
from flow_runs import run_here

CPU = torch.device("cpu")
TRANSFORMER, VAE, SCHEDULER = "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"
ODD = [
    ("sd3", TRANSFORMER, {"sample_size": 7}, "pictures of 56 pixels a side"),
    ("sd3", TRANSFORMER, {"sample_size": 64}, "pictures of 512 pixels a side"),
    ("flux", TRANSFORMER, {"axes_dims_rope": [4, 6]}, "has axes_dims_rope"),
    ("flux", TRANSFORMER, {"axes_dims_rope": [3, 6, 7]}, "expected 3 even numbers, 16 in sum"),
    ("flux", TRANSFORMER, {"axes_dims_rope": None}, "has axes_dims_rope None"),
    ("zimage", TRANSFORMER, {"axes_dims": [4, 6, 8]}, "AssertionError"),
    ("zimage", TRANSFORMER, {"axes_lens": [1, 1, 1]}, "has axes_lens"),
    ("zimage", TRANSFORMER, {"t_scale": float("nan")}, "has t_scale nan"),
    ("zimage", TRANSFORMER, {"rope_theta": 0}, "has rope_theta 0"),
    ("zimage", VAE, {"sample_size": 2**20}, "up to 32,768"),
    ("qwen", TRANSFORMER, {"zero_cond_t": True}, r"\(zero_cond_t\): models that edit pictures"),
    ("qwen", TRANSFORMER, {"use_layer3d_rope": True}, "is told more than a prompt"),
    ("qwen", TRANSFORMER, {"guidance_embeds": True}, "is told more than a prompt"),
    ("qwen", TRANSFORMER, {"axes_dims_rope": [4, 6, 8]}, "16 in sum"),
    ("qwen", "model_index.json", {"_class_name": "QwenImageEditPipeline"}, "holds a QwenImageEditPipeline"),
    ("qwen", VAE, {"latents_std": [0.0] * 16}, "deviations above 0"),
    ("qwen", VAE, {"latents_mean": [0.0]}, "expected 16 numbers"),
    ("qwen", VAE, {"dropout": float("nan")}, "has dropout nan"),
    ("sd3", "text_encoder/config.json", {"layer_norm_eps": None}, "norms with an eps of None"),
    ("zimage", "text_encoder/config.json", {"rms_norm_eps": None}, "eps"),
    ("klein", TRANSFORMER, {"guidance_embeds": True}, "is FLUX.2 dev"),
    ("klein", TRANSFORMER, {"axes_dims_rope": [4, 6, 6]}, "expected 4 even numbers, 16 in sum"),
    ("klein", "model_index.json", {"is_distilled": True}, "paints in 4 steps already"),
    ("klein", VAE, {"batch_norm_eps": 0}, "has batch_norm_eps 0"),
    ("klein", "text_encoder/config.json", {"num_hidden_layers": 9}, "cannot be loaded as Qwen3ForCausalLM"),
    *(
        (family, SCHEDULER, {"shift": 1e30, "flow_shift": 1e30, "use_dynamic_shifting": False}, "no usable shift")
        for family in FLOWS
    ),
    ("sana", TRANSFORMER, {"guidance_embeds": True}, "is SANA-Sprint, which paints in 1 to 4 steps already"),
    ("sana", TRANSFORMER, {"sample_size": 4096}, "has sample_size 4096"),
    ("sana", TRANSFORMER, {"sample_size": 0}, "has sample_size 0"),
    ("sana", TRANSFORMER, {"interpolation_scale": 0}, "has interpolation_scale 0"),
    ("sana", TRANSFORMER, {"timestep_scale": float("nan")}, "has timestep_scale nan"),
    ("sana", TRANSFORMER, {"cross_attention_dim": None}, "cannot be loaded|has left over"),
    ("sana", TRANSFORMER, {"out_channels": 64}, "expected shape"),
    ("sana", VAE, {"scaling_factor": "one"}, "has scaling_factor 'one'"),
    ("sana", VAE, {"decoder_block_out_channels": [8, 8, 8, 8, 32]}, "expected shape"),
    ("sana", SCHEDULER, {"use_flow_sigmas": False}, "has a DPMSolverMultistepScheduler around the network of a flow"),
    ("sana", SCHEDULER, {"flow_shift": None}, "has flow_shift None"),
    ("sana", CARD_FILE, {"stock_settings": {"a": "b"}}, "expected an object of true and false"),
    ("sana", CARD_FILE, {"stock_settings": {"a-b": True}}, "expected an object of true and false"),
    *((family, CARD_FILE, {"resolution": side}, f"resolution {side}") for family in FLOWS for side in (8, 72)),
    *((family, CARD_FILE, {"resolution": 32768}, "resolution 32768") for family in ("sd3", "zimage")),
]


@pytest.mark.parametrize(("family", "file", "change", "said"), ODD)
def test_an_odd_folder_is_refused(family, file, change, said, copy_flow):
    folder = copy_flow(family)
    held = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(held | change))
    with pytest.raises(UserError, match=said):
        load_latent_model(folder, CPU)


def test_pictures_are_of_whole_tokens(flow, flow_pictures, capsys, tmp_path):
    common = ("--data", flow_pictures, "--resolution", 72, "--out", tmp_path / "out")
    guided = ("--guidance-range", 4, 4, "--guidance-scale", 4, "--guided-from", 0)
    for command in (("distill", "scenes", "--teacher", flow, *guided), ("prepare", "--model", flow)):
        with pytest.raises(SystemExit, match="2"):
            run_here(*command, *common)
        said = capsys.readouterr().err
        assert sum(not line.startswith("note: ") for line in said.splitlines()) == 1
        assert f"a multiple of {copy_model(flow).codec.unit}" in said


@pytest.fixture(params=FUSED)
def fused(request, make_flow):
    """The original's name of q, k and v in one, their rows, and their inputs, of families that have them so."""
    model = copy_model(make_flow(request.param))
    named = dict(model.network.backbone.named_modules())
    module, ours = next(
        (theirs, ours) for theirs, ours in model.family.original.list_modules(named).items() if len(ours) == 3
    )
    return model, f"diffusion_model.{module}", named[ours[0]].weight.shape, ours


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("rows", "for 3 of its modules"), ("inputs", "cannot be taken apart"), ("twice", "is ambiguous"),
        ("spelt twice", "is ambiguous"),
    ],
)  # fmt: skip
def test_an_odd_lora_of_modules_in_one_is_refused(odd, said, fused, tmp_path):
    model, module, (rows, inputs), ours = fused
    tensors = {f"{module}.lora_A.weight": torch.ones(2, inputs), f"{module}.lora_B.weight": torch.ones(3 * rows, 2)}
    if odd == "rows":  # as many as each of the three has
        tensors[f"{module}.lora_B.weight"] = torch.ones(rows, 2)
    elif odd == "inputs":
        tensors[f"{module}.dora_scale"] = torch.ones(1, inputs)
    else:
        again = f"model.{module}" if odd == "twice" else f"transformer.{ours[0]}"
        tensors[f"{again}.lora_A.weight"] = torch.zeros(2, inputs)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=said):
        read_lora(tmp_path / "odd.safetensors", model.parts, model.family.lora)


@pytest.mark.parametrize("scale", ["rows", "columns", "blocks", "nan", "whole"])
def test_a_scale_of_fp8_is_a_number_or_one_for_each_row(scale, make_flow, tmp_path):
    folder = make_flow("sd3")
    tensors = to_original(copy_model(folder))
    name = "joint_blocks.0.x_block.attn.proj"  # whose rows are as many as its columns
    weight = tensors[f"{name}.weight"]
    n = len(weight)
    tensors[f"{name}.scale_weight"] = {
        "rows": torch.arange(1.0, n + 1), "columns": torch.ones(1, n), "blocks": torch.ones(2, 2),
        "nan": torch.tensor(float("nan")), "whole": torch.tensor(1),
    }[scale]  # fmt: skip
    save_file(tensors, tmp_path / "file.safetensors")
    if scale == "rows":
        found = load_latent_model(tmp_path / "file.safetensors", CPU, str(folder)).network.backbone
        wanted = weight * torch.arange(1.0, n + 1)[:, None]
        assert torch.equal(found.transformer_blocks[0].attn.to_out[0].weight, wanted)
        return
    with pytest.raises(UserError, match="one number is read, or one for each row"):
        load_latent_model(tmp_path / "file.safetensors", CPU, str(folder))


def test_a_scale_for_each_block_is_read(make_flow, tmp_path, monkeypatch):
    monkeypatch.setattr(original_transformers, "_BLOCK", 10)
    folder = make_flow("sd3")
    tensors = to_original(copy_model(folder))
    name = "joint_blocks.0.x_block.mlp.fc1"
    weight = tensors[f"{name}.weight"]
    rows, columns = (torch.arange(side) // 10 for side in weight.shape)
    scale = torch.rand(int(rows[-1]) + 1, int(columns[-1]) + 1) + 0.5
    tensors[f"{name}.weight_scale_inv"] = scale
    save_file(tensors, tmp_path / "file.safetensors")
    found = load_latent_model(tmp_path / "file.safetensors", CPU, str(folder)).network.backbone
    wanted = weight * scale[rows][:, columns]
    assert torch.equal(found.transformer_blocks[0].ff.net[0].proj.weight, wanted)


def test_two_transformers_are_one_too_many(flow, tmp_path):
    model = copy_model(flow)
    key = f"{model.family.keys_begin[0]}x.weight"
    save_file({key: torch.ones(1)}, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="is a transformer already"):
        load_latent_model(tmp_path / "file.safetensors", CPU, str(flow), Overrides(unet="another"))


def test_merged_it_paints_at_the_loras_own_times(fused, tmp_path):
    """Whatever the base's shift is: as it does beside the base."""
    model, _, (rows, inputs), ours = fused
    flow = model.source
    down, up = 0.1 * torch.ones(2, inputs), 0.1 * torch.ones(rows, 2)
    said = {"fewstep.method": "LCM-LoRA", "fewstep.shift": "1.25", "fewstep.omega": "3", "fewstep.steps": "2"}
    key = f"transformer.{ours[0]}"
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, tmp_path / "lora.safetensors", said)
    combine(Combine(base=str(flow), lora=(str(tmp_path / "lora.safetensors"),), merged=True, out=tmp_path / "merged"))
    beside = load_pipeline(str(flow), device="cpu", loras=((tmp_path / "lora.safetensors", 1.0),))
    merged = load_pipeline(str(tmp_path / "merged"), device="cpu")
    assert merged.model.schedule.shift == beside.model.schedule.shift == 1.25
    assert json.loads((tmp_path / "merged" / CARD_FILE).read_text())["shift"] == 1.25


def test_what_tells_where_to_land_is_merged_with_its_lora(flow, tmp_path):
    """At the LoRA's scale, and read back with the whole model."""
    torch.manual_seed(0)  # some draws lead to latents of 80, at which rounding is more than is allowed below
    base = copy_model(flow)
    layers = [base.network.backbone.get_submodule(name) for name in base.family.lora.time_layers]
    named = zip(("linear_1", "linear_2"), layers, strict=True)
    end = {f"fewstep_lora_end.{name}.{kind}": torch.randn_like(value) for name, layer in named
           for kind, value in layer.named_parameters()}  # fmt: skip
    name, module = next((name, each) for name, each in base.network.backbone.named_modules() if name.endswith(".to_q"))
    rows, inputs = module.weight.shape
    key = f"transformer.{name}"
    pair = {f"{key}.lora_A.weight": torch.ones(1, inputs), f"{key}.lora_B.weight": torch.ones(rows, 1)}
    file, out = tmp_path / "lora.safetensors", tmp_path / "out"
    save_file(pair | end, file, {"fewstep.method": "LCM-LoRA", "fewstep.consistency": "any-step", "fewstep.omega": "3"})
    combine(Combine(base=str(flow), lora=(f"{file}:0.5",), merged=True, out=out))
    beside, merged = load_pipeline(str(flow), device="cpu", loras=((file, 0.5),)), load_pipeline(out, device="cpu")
    assert merged.model.network.takes_end
    cond = base.conditioner.encode(["a red star"])
    one, other = (pipe.latents(cond, [7], 2, 3.0) for pipe in (beside, merged))
    assert torch.allclose(one, other, atol=1e-4)
    (out / "end.safetensors").unlink()
    with pytest.raises(UserError, match="has no input for where to land"):
        load_pipeline(out, device="cpu")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_read_nowhere(side, make_flow):
    """Of a prompt of more tokens than bf16 can count, whichever side is padded."""
    model = copy_model(make_flow("zimage"))
    read = []
    model.network.backbone.cap_embedder.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    mask = torch.zeros(1, 512, dtype=torch.bfloat16)
    mask[:, :301] = 1
    mask = mask.flip(1) if side == "left" else mask
    text = torch.where(mask[..., None] > 0, torch.randn(1, 512, 32), 0.0)
    model.network(torch.randn(1, 16, 8, 8), torch.tensor([500]), {"text": text, "mask": mask}, None)
    assert torch.equal(read[0][:301], text[0][mask[0] > 0])


def test_a_spoilt_chat_template_is_refused(copy_flow):
    folder = copy_flow("zimage")
    (folder / "tokenizer" / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        load_latent_model(folder, CPU)


def test_a_turbo_is_no_teacher_and_a_student_may_be_called_so(copy_flow, tmp_path):
    folder = copy_flow("zimage", "my-turbo")
    assert is_refused(folder, "cannot be a teacher")
    with pytest.raises(UserError, match="cannot be a teacher"):
        load_latent_model(folder, CPU)
    (folder / CARD_FILE).write_text(json.dumps({"method": "LCM-LoRA", "grid_size": 50}))
    assert load_latent_model(folder, CPU).is_few_step
    file = tmp_path / "z_image_turbo.safetensors"
    save_file({"cap_embedder.0.weight": torch.ones(1)}, file)
    assert is_refused(file, "cannot be a teacher")
    assert not is_refused(file.rename(tmp_path / "z_image.safetensors"), "")
    file.with_name("z_image.safetensors").rename(file)
    base = folder.rename(tmp_path / "base")
    with pytest.raises(UserError, match="cannot be a teacher"):
        load_latent_model(base, CPU, overrides=Overrides(unet=str(file)))


def is_refused(path, said):
    """Says whether `inspect` refuses what is there in such words, and does not say how it is made few-step."""
    lines = [*describe(path)]
    return any(line.startswith("not read: ") and said in line for line in lines) and not any(
        line.startswith("make it few-step") for line in lines
    )


TURBO = "Z-Image-Turbo"


@pytest.mark.parametrize(
    "source",
    [
        f"models/{TURBO}/", f"./{TURBO}/.", f"org/{TURBO}", f"models/{TURBO}/transformer",
        "z_image_turbo_bf16.safetensors",
        f"hub/models--Tongyi-MAI--{TURBO}/snapshots/04cc4abb", f"hub/models--org--{TURBO}/snapshots/04cc/transformer/",
    ],
)  # fmt: skip
def test_what_is_no_teacher_is_known_however_its_place_is_written(source):
    with pytest.raises(UserError, match="cannot be a teacher"):
        find_family("zimage").refuse({}, source)
    for other in (source.replace("urbo", "uned"), f"turbo/{source.replace('urbo', 'uned')}"):
        find_family("zimage").refuse({}, other)


def test_a_model_in_the_folder_that_one_stands_in_is_known_too(tmp_path, monkeypatch):
    (tmp_path / "FLUX.2-klein-4B").mkdir()
    monkeypatch.chdir(tmp_path / "FLUX.2-klein-4B")
    with pytest.raises(UserError, match="cannot be a teacher"):
        find_family("klein").refuse({}, ".")


def test_a_distilled_klein_is_known_by_its_name(copy_flow, tmp_path, edit_json):
    base = copy_flow("klein", "FLUX.2-klein-base-4B")
    file = tmp_path / "flux-2-klein-4b.safetensors"
    save_file({"double_stream_modulation_img.lin.weight": torch.ones(1)}, file)
    assert is_refused(file, "cannot be a teacher")
    with pytest.raises(UserError, match="cannot be a teacher"):
        load_latent_model(base, CPU, overrides=Overrides(unet=str(file)))
    assert not load_latent_model(base, CPU).is_few_step
    assert not is_refused(base, "")
    edit_json(base / "model_index.json", is_distilled=True)
    assert is_refused(base, "is_distilled in model_index.json")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("vector_in.in_layer", "is FLUX.1 schnell"), ("double_stream_modulation_img.lin", None),
        ("double_stream_modulation_img.lin guidance_in.in_layer", "is FLUX.2 dev"),
        ("vector_in.in_layer guidance_in.in_layer", None),
    ],
)  # fmt: skip
def test_a_files_tensors_tell_whether_its_network_is_told_its_guidance(held, said, tmp_path):
    file = tmp_path / "transformer.safetensors"
    save_file({f"{name}.weight": torch.ones(1) for name in held.split()}, file)
    assert is_refused(file, said or "") == bool(said)


def test_openvino_computes_none(make_flow):
    with pytest.raises(UserError, match="--engine torch alone computes a PixArtTransformer2DModel"):
        with_engine(copy_model(make_flow("pixart")), "openvino")


@pytest.mark.parametrize("said", ["nonsense", "[1]", '{"a": 1}'])
def test_a_record_of_styles_that_is_none_is_shown(said):
    with pytest.raises(UserError, match="expected a list of LoRAs") as caught:
        read_overrides({"base_lora": said})
    assert said in str(caught.value)


def test_a_renamed_copy_in_the_hubs_cache_has_the_name_that_it_was_given():
    for place in ("my-turbo", "models--owner--my-turbo"):
        for part in ("", "/transformer"):
            assert find_released_name(f"/cache/{place}/snapshots/0a1b{part}") == "my-turbo"
