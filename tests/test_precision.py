"""Which number format a device computes in."""

import pytest
import torch

from fewstep.precision import autocast, choose_dtype, name_dtype

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")
CARDS = {"V100": (7, 0), "T4": (7, 5), "RTX 2080": (7, 5), "A100": (8, 0), "RTX 3060": (8, 6), "H100": (9, 0)}


@pytest.mark.parametrize("capability", CARDS.values(), ids=list(CARDS))
def test_auto_takes_what_the_card_has_without_imitation(monkeypatch, capability):
    # As torch is on such cards: it counts imitation, and the machine's first card is another.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: capability if asked == CUDA else (9, 0))
    wanted = torch.bfloat16 if capability >= (8, 0) else torch.float16
    assert choose_dtype("auto", CUDA) == wanted
    assert choose_dtype("fp32", CUDA) == torch.float32
    assert choose_dtype("bf16", CUDA) == torch.bfloat16  # what is asked for is given


def test_amd_has_bf16(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert choose_dtype("auto", CUDA) == torch.bfloat16


def test_a_processor_computes_in_fp32_until_it_is_told():
    assert choose_dtype("auto", CPU) == torch.float32
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert choose_dtype(name, CPU) == dtype
        assert name_dtype(dtype) == name
        with autocast(CPU, dtype):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
