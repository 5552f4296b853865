"""What an update makes the host wait for: nothing but what its log reads."""

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.commands.bench_train import Ours
from fewstep.measure.stopwatch import Stopwatch
from fewstep.models.loading import load_latent_model
from fewstep.recipes.distill import Distill

CPU = torch.device("cpu")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
"""Operations whose answer the host needs before it can go on."""


class Waits(TorchDispatchMode):
    """Counts operations that the host waits for."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def make_ours(teacher, device, **changes):
    where = {"teacher": str(teacher), "device": device.type}
    config = Distill(batch_size=4, pictures=8, lr=1e-3, guidance_range=(5.0, 5.0), **where, **changes)
    return Ours(config, load_latent_model(teacher, device), Stopwatch(device))


CASES = [{"ema_decay": 0.9}, {"ema_decay": 0.0, "lora_rank": 4}, {"ema_decay": 0.9, "accumulation": 2}]
AVERAGE = {"_local_scalar_dense": 1}
"""A CPU's average reads its weight, which is there already; a GPU's goes another way (`update_average`)."""


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_an_update_waits_for_no_number_that_it_computed(random_teacher, changes):
    ours = make_ours(random_teacher, CPU, **changes)
    ours.update()
    with Waits() as waits:
        ours.update()
    assert waits.count == (AVERAGE if ours.config.ema_decay else {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a host waits for a GPU alone, and there is none here")
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_no_operation_of_an_update_waits_for_the_gpu(random_teacher, changes):
    ours = make_ours(random_teacher, torch.device("cuda"), **changes)
    ours.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):  # so is what waits found out
            torch.ones(1, device="cuda").item()
        ours.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
