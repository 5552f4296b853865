"""`prepare`: a device for each process, the autoencoder alone, pictures read while others are encoded."""

import re
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.cli import main
from fewstep.commands.prepare import EncodingStudio, Prepare
from fewstep.errors import UserError
from fewstep.models import loading
from fewstep.models.families import stable_diffusion_parts
from fewstep.models.loading import load_codec, load_latent_model, pick_device
from fewstep.runs.preparing import Stages, run_parts, sum_stages
from fewstep.runs.reading_stage import ReadingStage
from warm_command import start_server

CPU = torch.device("cpu")


def test_each_process_has_a_gpu_of_its_own_as_long_as_there_are_some(monkeypatch):
    monkeypatch.setattr(loading, "_pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [pick_device("auto", number).index for number in range(5)] == [None, 1, 2, 0, 1]
    monkeypatch.setattr(loading, "_pick_device", lambda _: torch.device("cuda", 2))
    assert pick_device("cuda:2", 1).index == 2
    monkeypatch.setattr(loading, "_pick_device", lambda _: CPU)
    assert pick_device("auto", 4) == CPU


def test_torchruns_local_rank_and_the_workers_number_choose_it(monkeypatch, tmp_path):
    asked = []

    def load(source, device, base_config):
        asked.append(device)
        return load_codec(source, CPU, base_config)

    monkeypatch.setattr("fewstep.commands.prepare.pick_device", lambda _, number: number)
    monkeypatch.setattr("fewstep.commands.prepare.load_codec", lambda s, d, b: load(s, torch.device("cpu", d), b))
    config = Prepare(model="scenes", data="scenes", pictures=4, out=tmp_path)
    with pytest.raises(AttributeError):  # a number is no device: it was passed on
        EncodingStudio(config, 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(AttributeError):
        EncodingStudio(config)
    assert [device.index for device in asked] == [3, 2]


def test_the_autoencoder_is_loaded_alone_and_is_that_of_the_whole_model(random_teacher, monkeypatch):
    whole = load_latent_model(random_teacher, CPU)
    loaded = []
    load = stable_diffusion_parts.load_weights
    monkeypatch.setattr(
        stable_diffusion_parts, "load_weights", lambda kind, *more: (loaded.append(kind.__name__), load(kind, *more))[1]
    )
    codec, side = load_codec(random_teacher, CPU)
    assert loaded == ["AutoencoderKL"]
    assert side == whole.resolution
    assert codec.describe() == whole.codec.describe()


def watch_threads(reading):
    """Gives the names of the threads that will have read."""
    names, read = set(), reading.read
    reading.read = lambda *i: (names.add(threading.current_thread().name), read(*i))[1]
    return names


def test_pictures_are_read_by_threads_while_others_are_encoded_and_become_the_same(tmp_path):
    held = []
    for threads in (0, 3):
        config = Prepare(
            model="scenes", data="scenes", pictures=20, batch_size=3, out=tmp_path / str(threads), read_ahead=threads
        )
        config.out.mkdir()
        studio = EncodingStudio(config)
        if threads:  # as on a GPU
            studio.stage = ReadingStage(studio._reading, threads)
            names = watch_threads(studio._reading)
        stages = run_parts(config, studio, studio.parts)
        assert stages.pictures == 20
        assert min(stages.decoding, stages.encoding, stages.writing) > 0
        held.append({file.name: file.read_bytes() for file in config.out.glob("*.safetensors")})
    assert held[0] == held[1]
    assert not any(name == "MainThread" for name in names)


def test_the_rate_of_each_stage_is_told(tmp_path, capsys):
    start_server()  # that workers are forked from, too
    main(
        [
            "prepare",
            "--model",
            "scenes",
            "--data",
            "scenes",
            "--pictures",
            "6",
            "--workers",
            "2",
            "--part",
            "3",
            "--out",
            str(tmp_path),
        ]
    )
    said = capsys.readouterr().out
    assert re.search(
        r"pictures a second: decode [\d.]+, encode [\d.]+, write [\d.]+ \(of one thread or process\), [\d.]+ in all",
        said,
    )
    assert sum_stages([Stages(2, 1.0, 2.0, 0.5), Stages(4, 1.0, 1.0, 0.5)]) == Stages(6, 2.0, 3.0, 1.0)
    assert sum_stages([]) == Stages()


def test_of_processes_that_torchrun_started_the_first_alone_speaks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["prepare", "--data", "scenes", "--model", "scenes", "--pictures", "8", "--out", str(tmp_path)]
    for rank, says in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        main(command)
        assert len(re.findall("prepared: 8 pictures", capsys.readouterr().out)) == says


def test_an_autoencoder_that_is_no_number_encodes_nothing(teacher_copy, tmp_path):
    file = teacher_copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"].view(-1)[-1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"is broken: NaN or infinity in vae.encoder.conv_in.weight; fetch the model"):
        EncodingStudio(Prepare(model=str(teacher_copy), data="scenes", pictures=4, out=tmp_path / "out", device="cpu"))
