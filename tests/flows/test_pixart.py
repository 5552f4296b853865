"""PixArt-Σ, a transformer that is not a flow: it is painted by its stock pipeline as by us, and what holds of flows in
general holds of it."""

import json
import shutil

import pytest
import test_as_diffusers
import test_commands
import test_original_files
import test_serving_flows
import test_teacher_lora
import test_training
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PixArtSigmaPipeline, Transformer2DModel
from safetensors.torch import save_file

from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import distill
from fewstep.diffusion.sampling import sample_ode
from fewstep.diffusion.schedule import sampling_times
from fewstep.errors import UserError
from fewstep.method.paths import TeacherPath
from fewstep.models.loading import load_latent_model
from fewstep.models.options import Overrides
from fewstep.models.pipeline import seeded_noise
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from flow_loading import copy_model, copy_stock
from flow_miniatures import to_original
from flow_runs import make_run, run_here

CPU, PROMPT, SEED = torch.device("cpu"), "a red star", 5


@pytest.fixture(scope="session")
def flow(make_flow):
    """What the tests below that are of flows take in their place."""
    return make_flow("pixart")


_SHARED = {
    test_as_diffusers: ("test_pictures_go_through_the_autoencoder_as_they_would_alone",),
    test_commands: (
        "tour", "loras", "test_loras_apart_combined_and_merged_paint_the_same", "test_what_was_made_paints",
        "test_a_lora_is_written_in_the_spelling_that_all_tools_read_and_in_kohyas_where_any_does",
        "test_painting_starts_from_a_picture", "test_its_speed_is_measured",
        "test_an_unfinished_run_paints_pictures_of_its_own_size",
    ),
    test_original_files: (
        "original", "test_a_transformer_alone_over_a_base", "test_every_tensor_has_its_place", "test_fp8_is_read",
        "test_what_does_not_fit_is_named", "test_without_a_base_it_says_what_to_give",
        "test_a_lora_of_the_originals_modules_adds_what_it_adds_there",
        "test_kohyas_file_of_diffusers_names_is_read_too",
    ),
    test_serving_flows: ("painter", "test_it_is_served"),
    test_teacher_lora: (
        "style", "distilled", "test_a_style_is_distilled_with_its_base", "test_a_whole_student_has_it_in_its_weights",
    ),
    test_training: (
        "test_a_step_is_the_same_twice_and_moves_the_right_weights", "test_every_method_takes_a_step",
        "test_the_teacher_is_not_told_the_end_and_stays_bit_for_bit", "test_the_end_learns_with_the_adapters",
        "test_features_are_pictures_and_have_gradients", "test_features_stand_where_their_pictures_do",
        "test_checkpointing_changes_nothing", "test_what_is_told_already_is_told_anew",
        "test_none_computes_in_fp16",
    ),
}  # fmt: skip
globals().update({name: getattr(module, name) for module, names in _SHARED.items() for name in names})


def settings(flow, pictures, out, **changes):
    return Distill(**{
        "teacher": str(flow), "data": str(pictures), "out": out, "steps": 2, "batch_size": 2, "lr": 3e-3,
        "ema_decay": 0.5, "sample_every": 0, "device": "cpu", "guidance_range": (4.0, 4.0), "guidance_scale": 4.0,
        **changes,
    })  # fmt: skip


def paint_by_stock(pipe, steps, scale, **more):
    """Paints latents, whose noise between the steps is drawn as ours is."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    return pipe(
        prompt=PROMPT, num_inference_steps=steps, height=64, width=64, latents=latents, output_type="latent",
        guidance_scale=scale, use_resolution_binning=False, generator=generator, **more,
    ).images  # fmt: skip


def paint_by_us(pipe, steps):
    return pipe.latents(pipe.model.conditioner.encode([PROMPT]), [SEED], steps, 0.0)


@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_the_teachers_steps_are_the_stock_pipelines(scale, flow):
    """Time, guidance, what of the output is noise, and the table of betas."""
    model, count = copy_model(flow), 5
    path = TeacherPath(model.network, model.schedule, model.null())
    field = path.field(model.conditioner.encode([PROMPT]), torch.tensor([model.family.omega_of(scale)]))
    z = seeded_noise([SEED], model.codec.shape(64), CPU)()
    with torch.no_grad():
        mine = sample_ode(model.schedule, field, z, sampling_times(model.schedule, count, "trailing"))
    pipe = copy_stock(flow)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=False
    )
    theirs = paint_by_stock(pipe, count, scale)
    assert (mine - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (mine - z).abs().max() > 0.1


def test_conditions_are_those_of_the_stock_pipeline(flow):
    model, pipe = copy_model(flow), copy_stock(flow)
    prompts = [" A Red Star", "", "a very long prompt " * 40]
    mine = model.conditioner.encode(prompts)
    text, mask, *_ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert torch.allclose(mine["text"], text, atol=1e-5)
    assert torch.equal(mine["mask"], mask.float())
    assert torch.allclose(mine["text"][1:2], model.null()["text"], atol=1e-5)


@pytest.mark.parametrize("method", ["lcm", "pcm", "tcd"])
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_student_is_painted_alike_by_the_stock_pipeline(kind, method, flow, flow_pictures, tmp_path):
    """A LoRA as a part of its base, since diffusers loads none here; by the lines of the card."""
    lora = {"lora_rank": 3, "lora_alpha": 6.0} if kind == "lora" else {}
    if method == "lcm":
        exported = make_run(flow, flow_pictures, kind).model
    else:
        distill(settings(flow, flow_pictures, tmp_path / "run", method=method, **lora))
        exported = tmp_path / "run" / "model"
    place = exported
    lines = (exported / "README.md").read_text().split("```")[1].removeprefix("python")
    if kind == "lora":
        place = tmp_path / "merged"
        combine(Combine(base=str(flow), lora=(str(exported),), merged=True, out=place))
        assert f"fewstep combine --base {flow} --lora" in lines
    mine, theirs = load_pipeline(exported, "cpu"), DiffusionPipeline.from_pretrained(place)
    assert type(theirs) is PixArtSigmaPipeline
    eta = {"eta": mine.method.gamma} if 0 < mine.method.gamma < 1 else {}
    for steps in (4,) if method == "pcm" else (1, 2, 4, 8):
        painted = paint_by_stock(theirs, steps, 1.0, **eta)
        assert (paint_by_us(mine, steps) - painted).abs().max() < 1e-4 * painted.abs().max()
    held = {}
    exec(lines.replace("this folder", str(place)).replace('"merged"', f'"{place}"'), held)
    assert held["image"].size == (64, 64)
    assert "guidance_scale=1" in lines
    assert "use_resolution_binning=False" in lines


def test_a_whole_any_step_student_is_painted_alike_by_its_own_pipeline(flow, flow_pictures):
    exported = str(make_run(flow, flow_pictures, "whole-any-step").model)
    mine = load_pipeline(exported, "cpu")
    theirs = DiffusionPipeline.from_pretrained(exported, custom_pipeline=exported, trust_remote_code=True)
    plain = DiffusionPipeline.from_pretrained(exported)
    for steps in (1, 2, 4, 8):
        painted = paint_by_stock(theirs, steps, 1.0)
        assert (paint_by_us(mine, steps) - painted).abs().max() < 1e-4 * painted.abs().max()
    assert (painted - paint_by_stock(plain, 8, 1.0)).abs().max() > 1e-3


@pytest.fixture
def copy(copy_flow):
    return copy_flow("pixart", "copy")


def test_a_transformer_of_the_former_class_is_the_same(copy, flow, edit_json, tmp_path):
    """As the released ones are; in a single file over it too."""
    former = {"norm_type": "ada_norm_single", "_class_name": "Transformer2DModel", "use_linear_projection": False}
    edit_json(copy / "transformer" / "config.json", **former)
    edit_json(copy / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    file = tmp_path / "transformer.safetensors"
    beside = {"pos_embed": torch.zeros(1, 4, 64), "y_embedder.y_embedding": torch.zeros(300, 64)}
    save_file(to_original(copy_model(flow)) | beside, file)
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    base = copy_model(flow)
    cond = base.conditioner.encode([PROMPT])
    wanted = base.network(z, t, cond, None).z_0
    for model in (load_latent_model(copy, CPU), load_latent_model(file, CPU, str(copy))):
        assert torch.equal(model.network(z, t, cond, None).z_0, wanted)


def test_the_former_class_itself_is_read_so(copy, flow):
    """diffusers' own file of one, at random."""
    config = copy_model(flow).network.backbone.config
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "cross_attention_dim", "in_channels",
             "out_channels", "caption_channels", "sample_size", "patch_size", "attention_bias", "activation_fn",
             "norm_elementwise_affine", "use_additional_conditions")  # fmt: skip
    former = Transformer2DModel(
        norm_type="ada_norm_single", num_embeds_ada_norm=1000, norm_eps=1e-6, **{name: config[name] for name in names}
    )
    shutil.rmtree(copy / "transformer")
    former.save_pretrained(copy / "transformer")
    model = load_latent_model(copy, CPU)
    held = model.network.backbone.state_dict()
    assert held.keys() == former.state_dict().keys()
    assert all(torch.equal(value, held[name]) for name, value in former.state_dict().items())


TRANSFORMER, VAE, SCHEDULER = "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (TRANSFORMER, {"use_additional_conditions": True}, "as PixArt-α is"),
        (TRANSFORMER, {"use_additional_conditions": None, "sample_size": 128}, "as PixArt-α is"),
        (TRANSFORMER, {"sample_size": 4096}, "has sample_size 4096"),
        (TRANSFORMER, {"sample_size": 7}, "pictures of 56 pixels a side"),
        (TRANSFORMER, {"interpolation_scale": float("nan")}, "has interpolation_scale nan"),
        (TRANSFORMER, {"patch_size": 4}, "expected shape"),
        (TRANSFORMER, {"out_channels": 12}, "expected shape"),
        (TRANSFORMER, {"norm_type": "ada_norm"}, "cannot be loaded as PixArtTransformer2DModel"),
        (VAE, {"scaling_factor": 0}, "has scaling_factor 0"),
        (VAE, {"latents_mean": [0.0] * 4}, "has latents_mean .* ignore"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, "has model_max_length 'long'"),
        (SCHEDULER, {"use_flow_sigmas": True}, "flow matching"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "which is a flow's and not of this network"),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        (SCHEDULER, {"beta_start": "a"}, "no usable noise schedule"),
        ("fewstep.json", {"resolution": 72}, "resolution 72"),
        ("fewstep.json", {"stock_loras": "no"}, "expected true or false"),
    ],
)
def test_an_odd_folder_is_refused(file, change, said, copy):
    held = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps(held | change))
    with pytest.raises(UserError, match=said):
        load_latent_model(copy, CPU)


def test_it_is_not_taken_for_sana_nor_the_other_way_round(flow, make_flow, tmp_path):
    sana = make_flow("sana")
    for base, other in ((flow, sana), (sana, flow)):
        save_file(to_original(copy_model(other)), tmp_path / "file.safetensors")
        with pytest.raises(UserError, match="holds no transformer of"):
            load_latent_model(base, CPU, overrides=Overrides(unet=str(tmp_path / "file.safetensors")))


def test_what_it_has_no_place_for_is_refused(flow, flow_pictures, capsys, tmp_path):
    common = ("distill", "scenes", "--teacher", flow, "--data", flow_pictures, "--steps", 1, "--guided-from", 0)
    with pytest.raises(SystemExit, match="2"):
        run_here(*common, "--guidance-range", 2, 9, "--out", tmp_path / "run")
    assert "has no input for guidance and guidance_range is 2 to 9" in capsys.readouterr().err
    assert "parameterisation: epsilon" in run_here("inspect", flow)
    run_here(
        *common, "--prediction-type", "v_prediction", *test_commands.GUIDED, "--dry-run", "--out", tmp_path / "dry"
    )


def test_positions_are_those_of_the_teacher_at_every_size(flow, flow_pictures, tmp_path):
    distill(settings(flow, flow_pictures, tmp_path / "run", steps=1, lr=1e-12, ema_decay=0.0, resolution=32))
    teacher, student = copy_model(flow), load_latent_model(tmp_path / "run" / "model", CPU)
    assert (student.resolution, student.network.backbone.config.sample_size) == (32, 8)
    z, t, cond = torch.randn(1, 4, 4, 4), torch.tensor([500]), teacher.conditioner.encode([PROMPT])
    one, other = (model.network(z, t, cond, None).z_0 for model in (teacher, student))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_style_says_how_it_is_painted_with(tour):
    lines = (tour("style").model / "README.md").read_text()
    assert "diffusers' pipeline loads no LoRA here" in lines
    assert "--merged --out merged" in lines
