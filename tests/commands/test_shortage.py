"""Where memory runs out, the command says what needs less of it."""

import dataclasses
import resource
import sys
from pathlib import Path

import pytest
import torch

from fewstep.cli import COMMANDS, _explain_end, _run_explained, main
from fewstep.errors import UserError
from fewstep.parallel.processes import OTHER_GONE
from fewstep.recipes.distill import Distill
from fewstep.runs.shortage import explain_out_of_memory
from warm_command import Warm


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux's limit of addresses")
def test_a_real_process_that_runs_out_says_what_needs_less(random_teacher, tmp_path):
    options = ("--pictures", 16, "--batch-size", 16384, "--steps", 2, "--sample-every", 0, "--out", tmp_path / "run")
    command = Warm(("distill", "scenes", "--teacher", random_teacher, *options), env={"OMP_NUM_THREADS": "1"})
    held = int(Path(f"/proc/{command.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(command.process.pid, resource.RLIMIT_AS, (held + (1 << 30),) * 2)
    done = command.wait()
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fewstep: error: out of memory; these need less: --accumulation 2 or more")
    assert last.endswith("--change accumulation gradient_checkpointing optimizer. `fewstep plan` says what fits a GPU")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_what_is_in_use_is_not_advised(error):
    config = Distill(batch_size=6, accumulation=2, gradient_checkpointing=True, optimizer="adamw8bit")
    with pytest.raises(UserError, match="need less: --accumulation 3 or more") as told, explain_out_of_memory(config):
        raise error
    assert "8bit" not in str(told.value)
    assert "checkpointing" not in str(told.value)
    adapters = dataclasses.replace(config, accumulation=6, lora_rank=4, guidance_range=(5.0, 5.0))
    with pytest.raises(UserError, match="need less: --frozen-precision nf4"), explain_out_of_memory(adapters):
        raise error
    small = dataclasses.replace(adapters, frozen_precision="nf4")
    with pytest.raises(UserError, match="with every setting in use"), explain_out_of_memory(small):
        raise error


SHORT = (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError())
WHERE = {
    "load": ("generate", "fewstep.commands.generate.load_painter", "--batch-size 8 or less"),
    "paint": ("generate", "fewstep.models.pipeline.Pipeline.latents", "--batch-size 8 or less"),
    "decode": ("generate", "fewstep.models.codec.Codec.decode", "--batch-size 8 or less"),
    "load to train": ("distill", "fewstep.runs.learning.load_latent_model", "--accumulation 2 or more"),
    "encode": ("distill", "fewstep.models.codec.Codec.encode", "--accumulation 2 or more"),
    "export": ("distill", "fewstep.train.whole_weights.save_student", "--accumulation 2 or more"),
    "prepare": ("prepare", "fewstep.models.codec.Codec.encode", "--batch-size 8 or less"),
    "evaluate": ("evaluate", "fewstep.evaluate.studio.load_pipeline", "--batch-size 1"),
    "combine": ("combine", "fewstep.commands.combine.load_latent_model", "give a smaller model"),
}


@pytest.mark.parametrize(("command", "place", "advice"), WHERE.values(), ids=list(WHERE))
def test_it_is_told_in_words_wherever_it_happens(command, place, advice, tmp_path, monkeypatch, capsys):
    options = {
        "generate": ("--prompt", "a red star", "--steps", "1"),
        "distill": ("--pictures", "4", "--batch-size", "4", "--steps", "1", "--sample-every", "0"),
        "prepare": ("--model", "scenes", "--data", "scenes", "--pictures", "4"),
        "evaluate": ("--device", "cpu"), "combine": ("--base", "scenes", "--lora", "x.safetensors"),
    }[command]  # fmt: skip
    for error in SHORT:

        def fall_short(*_, _error=error, **__):
            raise _error

        monkeypatch.setattr(place, fall_short)
        with pytest.raises(SystemExit) as ended:
            main([command, *options, "--out", str(tmp_path / type(error).__name__)])
        assert ended.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("fewstep: error: out of memory")
        assert advice in last


def test_one_process_of_several_tells_it_too(tmp_path):
    config = Distill(batch_size=6, accumulation=2, out=tmp_path / "run")

    def fall_short(_):
        raise SHORT[0]

    with pytest.raises(UserError) as told:
        _run_explained(COMMANDS["distill"], fall_short, config)
    assert _explain_end(told.value, COMMANDS["distill"]) == 2


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(Distill()):
        raise RuntimeError("shapes do not fit")


GONE = (
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2831",
    "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network error, NCCL version 2.27",
)
NOT_GONE = (
    "NCCL error in: ProcessGroupNCCL.cpp:2021, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version "
    "2.27.3 ncclInvalidUsage: This usually reflects invalid usage of NCCL library. Last error: Duplicate GPU detected "
    ": rank 1 and rank 0 both on CUDA device 53000"
)


def test_what_ails_processes_is_told_whole(capsys):
    for text in GONE:
        assert _explain_end(RuntimeError(text), COMMANDS["distill"]) == OTHER_GONE
        assert f"another process has gone ({text})" in capsys.readouterr().err
    assert _explain_end(torch.distributed.DistBackendError(NOT_GONE), COMMANDS["distill"]) == 1
    assert capsys.readouterr().err == f"fewstep: error: the processes cannot talk to one another: {NOT_GONE}\n"
