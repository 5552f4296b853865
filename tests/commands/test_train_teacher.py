"""How the bundled teacher was made, in miniature, twice in the same folder."""

import pytest
import torch
from safetensors.torch import load_file

from fewstep.commands import train_teacher as recipe
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.teacher.tasks import AutoencoderTask
from fewstep.train.config import LoopConfig

SMALL = (
    "--pictures", 40, "--autoencoder.steps", 2, "--autoencoder.batch-size", 2, "--polish.steps", 2,
    "--polish.batch-size", 2, "--reader.steps", 2,
    "--reader.batch-size", 4, "--text.steps", 2, "--text.batch-size", 4, "--diffusion.steps", 2,
    "--diffusion.batch-size", 2, "--finish.steps", 2, "--finish.batch-size", 2,
    "--touch-up.steps", 2, "--touch-up.batch-size", 2,
)  # fmt: skip


def test_makes_a_teacher_that_loads(tmp_path, fewstep_command):
    done = fewstep_command("train-teacher", "--out", tmp_path / "t", *SMALL)
    assert done.returncode == 0, done.stderr
    model = load_latent_model(tmp_path / "t" / "pipeline", pick_device("cpu"))
    assert model.resolution == 64
    assert {path.name for path in (tmp_path / "t" / "pipeline" / "tokenizer").iterdir()} >= {"vocab.json", "merges.txt"}
    assert load_file(tmp_path / "t" / "reader" / "reader.safetensors")
    assert_exported_is_last_average(tmp_path / "t")
    again = fewstep_command("train-teacher", "--out", tmp_path / "t", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "2/2" in done.stderr
    assert "2/2" not in again.stderr  # every stage was done
    other = fewstep_command("train-teacher", "--out", tmp_path / "t", *SMALL, "--seed", 1)
    assert other.returncode == 2
    assert "seed is 0 there and 1 here" in other.stderr


def assert_exported_is_last_average(run):
    """The UNet of the last loop in fp16, the text encoder of its own loop in fp32."""
    unet = load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    last = load_file(next((run / "touch-up" / "checkpoints").glob("*2")) / "state.safetensors")
    assert unet
    for name, value in unet.items():
        assert torch.equal(value, last[f"averaged.{name}"].half()), name
    text = load_file(run / "pipeline" / "text_encoder" / "model.safetensors")
    last = load_file(next((run / "text" / "checkpoints").glob("*2")) / "state.safetensors")
    assert text
    for name, value in text.items():
        assert torch.equal(value, last[f"averaged.text_encoder.{name.removeprefix('text_model.')}"]), name


def test_the_autoencoders_second_cycle_draws_anew(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    seen = []

    class Recorder(AutoencoderTask):
        def __init__(self, autoencoder, pixels, seed):
            super().__init__(autoencoder, pixels, seed)
            seen.append((pixels(range(2)), seed))

    def stop(*_):
        raise Stop

    monkeypatch.setattr(recipe, "AutoencoderTask", Recorder)
    monkeypatch.setattr(recipe, "ReaderTask", stop)
    short = LoopConfig(steps=1, batch_size=2)
    with pytest.raises(Stop):
        recipe.train_teacher(recipe.TrainTeacher(out=tmp_path / "t", autoencoder=short, polish=short))
    (first, seed), (second, other_seed) = seen
    assert not torch.equal(first, second)
    assert seed != other_seed
