"""Where memory runs out, the command says what needs less of it."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from fewstep.errors import UserError
from fewstep.recipes.distill import Distill
from fewstep.runs.shortage import explain_out_of_memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux's limit of addresses")
def test_a_real_process_that_runs_out_says_what_needs_less(random_teacher, tmp_path):
    options = f"--teacher {random_teacher} --pictures 16 --batch-size 1024 --steps 2 --sample-every 0"
    command = f"exec {sys.executable} -m fewstep distill {options} --out {tmp_path}/run"
    bounded = f"ulimit -v 3000000; OMP_NUM_THREADS=1 {command}"
    done = subprocess.run(["bash", "-c", bounded], capture_output=True, text=True, check=False)
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
    small = dataclasses.replace(config, accumulation=6, lora_rank=4, guidance_range=(5.0, 5.0))
    with pytest.raises(UserError, match="with every setting in use"), explain_out_of_memory(small):
        raise error


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(Distill()):
        raise RuntimeError("shapes do not fit")
