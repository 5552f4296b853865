"""Loading: what is taken, what is refused, and in which words."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fewstep.errors import UserError
from fewstep.models import codec
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.pipeline import seeded_noise

CPU = torch.device("cpu")


def refusal(source):
    with pytest.raises(UserError) as caught:
        load_latent_model(source, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_what_diffusers_wrote(random_teacher):
    model = load_latent_model(random_teacher, CPU)
    assert (model.resolution, model.codec.multiple, model.codec.shape(64)) == (64, 8, (12, 8, 8))
    assert model.network.parameterisation == "v_prediction"
    assert model.network.backbone.dtype == torch.float32
    theirs = StableDiffusionPipeline.from_pretrained(random_teacher)
    text, _ = theirs.encode_prompt(["a red star"], CPU, 1, do_classifier_free_guidance=False)
    assert torch.equal(model.conditioner.encode(["a red star"])["text"], text)


def test_encoding_and_decoding_use_the_scaling_factor(random_teacher):
    model = load_latent_model(random_teacher, CPU)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = model.codec.encode(pixels)
    posterior = model.codec.autoencoder.encode(pixels).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, posterior.std * 0.7, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.codec.decode(mean), model.codec.autoencoder.decode(posterior.mean).sample, rtol=1e-3, atol=1e-4
    )


def test_few_pixels_are_encoded_together(random_teacher, monkeypatch):
    model = load_latent_model(random_teacher, CPU)
    pixels = torch.rand(5, 3, 64, 64) * 2 - 1
    whole = model.codec.encode(pixels)
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 2 * 64 * 64 + 1)
    sizes = []
    model.codec.autoencoder.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    for part, one in zip(model.codec.encode(pixels), whole, strict=True):
        torch.testing.assert_close(part, one, rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 1)  # a picture larger than that is encoded alone
    model.codec.encode(pixels[:2])
    assert sizes[3:] == [1, 1]


def test_few_pixels_are_decoded_together(random_teacher, monkeypatch):
    model = load_latent_model(random_teacher, CPU)
    z_0 = torch.randn(5, *model.codec.shape(64))
    whole = model.codec.decode(z_0)
    monkeypatch.setattr(codec, "PIXELS_AT_ONCE", 2 * 64 * 64 + 1)
    sizes = []
    model.codec.autoencoder.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    torch.testing.assert_close(model.codec.decode(z_0), whole, rtol=1e-4, atol=1e-4)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_other_parameterisations(teacher_copy, edit_json, kind):
    scheduler = teacher_copy / "scheduler" / "scheduler_config.json"
    edit_json(scheduler, prediction_type=kind, rescale_betas_zero_snr=kind != "epsilon")
    model = load_latent_model(teacher_copy, CPU)
    z, t, cond = torch.randn(1, 12, 8, 8), torch.tensor([399]), model.conditioner.encode(["a red star"])
    raw = model.network.backbone(z, t, encoder_hidden_states=cond["text"]).sample
    alpha, sigma = model.schedule.coefficients(t, z)
    expected = {"epsilon": (z - sigma * raw) / alpha, "v_prediction": alpha * z - sigma * raw, "sample": raw}[kind]
    torch.testing.assert_close(model.network(z, t, cond, None).z_0, expected)


def test_half_precision_variants_are_found(random_teacher, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(random_teacher)
    pipe.to(dtype=torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    half, full = load_latent_model(tmp_path / "half", CPU), load_latent_model(random_teacher, CPU)
    for mine, theirs in zip(half.network.parameters(), full.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_missing_folder():
    assert "is neither a folder" in refusal("/no/such/folder")


def test_unreachable_hub_id():
    assert "could not be fetched from the Hub" in refusal("nobody/no-such-model")


def test_not_a_pipeline(tmp_path):
    assert "is not a pipeline: model_index.json is missing" in refusal(tmp_path)


def test_another_pipeline(teacher_copy, edit_json):
    edit_json(teacher_copy / "model_index.json", _class_name="AuraFlowPipeline")
    assert "holds a AuraFlowPipeline; known: StableDiffusionPipeline" in refusal(teacher_copy)


def test_broken_json(teacher_copy):
    (teacher_copy / "model_index.json").write_text("{")
    assert "model_index.json cannot be read" in refusal(teacher_copy)


def test_missing_part(teacher_copy):
    (teacher_copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "no safetensors weights (found none)" in refusal(teacher_copy)


def test_unknown_prediction_type(teacher_copy, edit_json):
    edit_json(teacher_copy / "scheduler" / "scheduler_config.json", prediction_type="flow")
    assert "prediction_type 'flow'; known: epsilon, v_prediction, sample" in refusal(teacher_copy)


def test_unknown_schedule(teacher_copy, edit_json):
    edit_json(teacher_copy / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid")
    assert "beta_schedule is 'sigmoid'" in refusal(teacher_copy)


def test_epsilon_with_zero_terminal_snr(teacher_copy, edit_json):
    scheduler = teacher_copy / "scheduler" / "scheduler_config.json"
    edit_json(scheduler, rescale_betas_zero_snr=True, prediction_type="epsilon")
    assert "no answer at pure noise" in refusal(teacher_copy)


def test_a_pickle_is_refused(teacher_copy):
    weights = teacher_copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    assert "a pickle" in refusal(teacher_copy)


@pytest.mark.parametrize("spoil", ["pickle inside", "truncated"])
@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_file_that_only_claims_to_be_safetensors(teacher_copy, part, spoil):
    weights = teacher_copy / f"{part}.safetensors"
    if spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        torch.save({}, weights)
    assert f"{weights} is damaged or not a safetensors file" in refusal(teacher_copy)


def test_a_broken_tokenizer(teacher_copy):
    (teacher_copy / "tokenizer" / "tokenizer.json").write_text("{")
    assert "cannot be loaded as CLIPTokenizer" in refusal(teacher_copy)


@pytest.mark.parametrize(
    "change",
    [{"num_train_timesteps": "many"}, {"beta_start": -1}, {"beta_end": 2}, {"num_train_timesteps": 0}],
    ids=str,
)
def test_a_schedule_out_of_range(teacher_copy, edit_json, change):
    edit_json(teacher_copy / "scheduler" / "scheduler_config.json", **change)
    assert "no usable noise schedule" in refusal(teacher_copy)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("fewstep.json", {"guidance_scale": "much"}),
        ("scheduler/scheduler_config.json", {"original_inference_steps": 2000}),
        ("scheduler/scheduler_config.json", {"original_inference_steps": None}),
    ],
)
def test_a_student_whose_records_are_broken(random_student, tmp_path, edit_json, file, change):
    import fewstep

    model = shutil.copytree(random_student / "model", tmp_path / "model")
    edit_json(model / file, **change)
    with pytest.raises(UserError, match=next(iter(change))):
        fewstep.load(model)


def test_unknown_device():
    with pytest.raises(
        UserError, match=r"device 'abacus' cannot be used here: it is no device .* give one of auto, cpu"
    ):
        pick_device("abacus")


def test_noise_is_each_pictures_own():
    draw = seeded_noise([3, 4], (2, 5), CPU)
    first, second = draw(), draw()
    own = torch.Generator().manual_seed(4)
    assert torch.equal(first[1], torch.randn((1, 2, 5), generator=own)[0])
    assert torch.equal(second[1], torch.randn((1, 2, 5), generator=own)[0])
