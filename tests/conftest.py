"""Fixtures that several folders of tests share: small random models in the real layout."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from closed_forms import SD_CONFIG
from fewstep.cli import QUIET
from fewstep.diffusion.schedule import Tabulated
from warm_command import Warm, start_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.update(QUIET)  # as the command sets it, before transformers is imported by any test


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory):
    """Has every process keep its temporary files among those of the tests, with which they go, whoever was killed.

    In a run of many processes, starts the server of warm ones before any test, so that no other takes its place.
    """
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # which serves the next run, too
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    own = str(tmp_path_factory.mktemp("t"))
    if len(own) < 70:  # sockets stand there, too, and no name of theirs may be longer than 107 letters
        os.environ["TMPDIR"] = tempfile.tempdir = own
    if "PYTEST_XDIST_WORKER" in os.environ:
        start_server()


@pytest.fixture(scope="session")
def sd_schedule() -> Tabulated:
    return Tabulated.from_config(SD_CONFIG)


@pytest.fixture(scope="session")
def zero_terminal_schedule() -> Tabulated:
    return Tabulated.from_config(SD_CONFIG | {"rescale_betas_zero_snr": True})


def _save_random_teacher(folder, unet, autoencoder):
    from fewstep.data.worlds.scenes import Scenes
    from fewstep.models import scenes_model

    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    trained = scenes_model.Trained(autoencoder, scenes_model.build_text_encoder(tokenizer), unet, scaling_factor=0.7)
    scenes_model.save_teacher(folder, trained, tokenizer, scenes_model.build_scheduler())
    return folder


@pytest.fixture(scope="session")
def random_teacher(tmp_path_factory):
    """The bundled teacher's parts, a quarter and a half as wide, with random weights; do not write into it."""
    from diffusers import UNet2DConditionModel

    from fewstep.models import scenes_model

    torch.manual_seed(0)
    with torch.device("meta"):
        config = dict(scenes_model.build_unet().config)
    unet = UNet2DConditionModel.from_config(config | {"block_out_channels": (16, 32)})
    autoencoder = scenes_model.build_autoencoder(widths=(8, 16, 32, 32))
    return _save_random_teacher(tmp_path_factory.mktemp("models") / "random-teacher", unet, autoencoder)


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory):
    """The bundled teacher's very architecture with random weights, where its size decides what is done or counted;
    do not write into it."""
    from fewstep.models import scenes_model

    torch.manual_seed(0)
    unet, autoencoder = scenes_model.build_unet(), scenes_model.build_autoencoder()
    return _save_random_teacher(tmp_path_factory.mktemp("models") / "wide-teacher", unet, autoencoder)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The folder of a small random CLIP."""
    from fewstep.data.worlds.scenes import Scenes
    from fewstep.models import scenes_model
    from miniatures import save_clip

    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return save_clip(tokenizer, tmp_path_factory.mktemp("extractors") / "clip")


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    """The folder of a random decoder in TAESD's layout, of the bundled models' latents."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    small = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    folder = tmp_path_factory.mktemp("models") / "tiny-decoder"
    AutoencoderTiny(
        latent_channels=12, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4, **small
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def teacher_copy(random_teacher, tmp_path):
    """A copy of `random_teacher` to spoil."""
    return shutil.copytree(random_teacher, tmp_path / "teacher")


@pytest.fixture
def edit_json():
    """Changes keys of a JSON file."""

    def edit(path, **changes):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.fixture(scope="session")
def fewstep_command():
    """Runs the real command in a process of its own; `fresh`, in an interpreter of its own too."""

    def run(*arguments, cwd=None, env=None, fresh=False, constants=None):
        if not fresh:
            return Warm(arguments, cwd, constants, env).wait()
        return subprocess.run(
            [sys.executable, "-m", "fewstep", *map(str, arguments)], capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def random_student(random_teacher, tmp_path_factory, fewstep_command):
    """A run folder after a few updates on `random_teacher`; do not write into it."""
    out = tmp_path_factory.mktemp("runs") / "student"
    done = fewstep_command(
        "distill", "scenes", "--teacher", random_teacher, "--out", out, "--steps", 3, "--batch-size", 4,
        "--pictures", 24, "--skip", 20, "--log-every", 1, "--sample-every", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out
