"""Files that are no LoRA that can be read, each refused in one line that says why."""

import math

import pytest
import torch

from fewstep.errors import UserError
from fewstep.models.lora.fitting import LARGEST_RANK
from lora_spellings import PEFT, UNET, draw, of_kohya, read, said, spell


def changed(model, header=None, **tensors):
    """Two modules as diffusers writes them, with some tensors changed; None leaves one out."""
    halves = spell(draw(model, UNET[:2]), *PEFT)
    names = {"down": f"{UNET[0]}.lora_A.weight", "up": f"{UNET[0]}.lora_B.weight"}
    for name, value in tensors.items():
        halves[names.get(name, f"{UNET[0]}.{name}")] = value
    return {key: value for key, value in halves.items() if value is not None}, header


W = (16, 16)
REFUSED = {
    "int8": (lambda m: changed(m, down=torch.zeros(3, 16, dtype=torch.int8)), "down of .* as int8.*quantised"),
    "complex": (lambda m: changed(m, up=torch.zeros(16, 3, dtype=torch.complex64)), "up of .* as complex64"),
    "rank 0": (lambda m: changed(m, down=torch.zeros(0, 16), up=torch.zeros(16, 0)), "does not fit this base"),
    "a vector": (lambda m: changed(m, down=torch.zeros(16)), r"\(16,\) and .*needed: \(rank, 16\)"),
    "down alone": (lambda m: changed(m, up=None), "holds down alone"),
    "up alone": (lambda m: changed(m, down=None), "holds up alone"),
    "alpha alone": (lambda m: changed(m, down=None, up=None, alpha=torch.tensor(1.0)), "holds alpha alone"),
    "alpha is none": (lambda m: changed(m, alpha=torch.ones(3)), r"alpha of .* is float32 \(3,\), not a number"),
    "alpha is nothing": (lambda m: changed(m, alpha=torch.ones(0)), r"is float32 \(0,\), not a number"),
    "alpha is NaN": (lambda m: changed(m, alpha=torch.tensor(math.nan)), "alpha nan"),
    "overflow": (lambda m: changed(m, up=torch.full((16, 3), 1e300, dtype=torch.float64)), "NaN or infinity"),
    "NaN in fp8": (lambda m: changed(m, up=torch.full((16, 3), math.nan).to(torch.float8_e4m3fn)), "NaN or infinity"),
    "twice": (
        lambda m: ({**changed(m)[0], **of_kohya(draw(m, UNET[:1]))}, None), "holds down of unet.* twice, the second"
    ),
    "factors": (lambda m: changed(m, **{"lora_mid.weight": torch.zeros(2, 2, 3, 3)}), "three factors"),
    "magnitude": (lambda m: changed(m, lora_magnitude_vector=torch.ones(5)), r"magnitude of .* is \(5,\)"),
    "LoHa": (lambda m: changed(m, hada_w1_a=torch.ones(3)), "holds LoHa, such as"),
    "LoKr": (lambda m: changed(m, lokr_w1=torch.ones(3)), "holds LoKr"),
    "OFT": (lambda m: changed(m, oft_blocks=torch.ones(3)), "holds OFT"),
    "IA3": (lambda m: changed(m, on_input=torch.ones(1)), "holds IA3"),
    "differences": (lambda m: changed(m, diff=torch.ones(16, 16)), "holds whole differences"),
    "bias": (lambda m: changed(m, **{"lora_B.bias": torch.ones(16)}), "holds biases"),
    "whole model": (lambda _: ({"model.diffusion_model.out.2.weight": torch.ones(1)}, None), "holds a whole model"),
    "embedding": (lambda _: ({"emb_params": torch.ones(2, 16)}, None), "holds a textual-inversion embedding"),
    "PiSSA": (lambda m: changed(m, said(r=3, init_lora_weights="pissa_niter_4")), "init_lora_weights 'pissa_niter_4'"),
    "another kind by its header": (lambda m: changed(m, said(r=3, peft_type="LOKR")), "of the kind 'LOKR'"),
    "what fewstep cannot": (lambda m: changed(m, said(r=3, lora_bias=True)), "with lora_bias True"),
    "what is to come": (lambda m: changed(m, said(r=3, use_next_year=True)), "with use_next_year True"),
    "another rank": (lambda m: changed(m, said(r=4, lora_alpha=4)), "rank 3 and alpha 4 by its tensors, 4 and 4"),
    "two alphas": (lambda m: changed(m, said(r=3, lora_alpha=4), alpha=torch.tensor(1.0)), "alpha 1 by its tensors"),
    "no JSON": (lambda m: changed(m, {"lora_adapter_metadata": "{"}), "no JSON"),
    "a list": (lambda m: changed(m, {"lora_adapter_metadata": "[1]"}), "no JSON object"),
    "words": (lambda m: changed(m, said(r=3, lora_alpha="much")), "lora_alpha 'much'; expected a number"),
    "no pattern": (lambda m: changed(m, said(r=3, alpha_pattern={"(": 1})), r"alpha_pattern '\(', which is a pattern"),
    "a pattern that takes days": (
        lambda m: changed(m, said(r=3, rank_pattern={"((a+)+)+$|.*b": 3})), "which is a pattern and no name of a module"
    ),
    "a million modules": (
        lambda m: changed(m, said(r=3, alpha_pattern={f"m{i}": 1 for i in range(20_000)})), "of 20,000 modules"
    ),
    "an alternative": (lambda m: changed(m, said(r=3, rank_pattern={"conv1|conv2": 3})), "write the names"),
    "deep JSON": (lambda m: changed(m, {"lora_adapter_metadata": "[" * 10**5}), "no JSON"),
    "deep JSON that Python reads": (
        lambda m: changed(m, {"lora_adapter_metadata": '{"r":' + "[" * 99 + "]" * 99 + "}"}), "no JSON"
    ),
    "pattern of words": (lambda m: changed(m, said(r=3, alpha_pattern={"a": "b"})), "numbers by modules"),
    "an endless number": (lambda m: changed(m, said(r=3, lora_alpha=10**400)), "no JSON"),
    "a number too large": (lambda m: changed(m, said(r=3, lora_alpha=10**35)), "expected a number"),
    "booleans": (lambda m: changed(m, up=torch.ones(16, 3, dtype=torch.bool)), "as bool, of which a LoRA cannot"),
    "complex numbers": (lambda m: changed(m, up=torch.ones(16, 3, dtype=torch.complex64)), "as complex64"),
    "an alpha of booleans": (lambda m: changed(m, alpha=torch.tensor(True)), "is bool"),
    "DoRA without magnitudes": (lambda m: changed(m, said(r=3, use_dora=True)), "is a DoRA and holds no magnitude"),
    "too much": (
        lambda m: changed(m, down=torch.zeros(LARGEST_RANK + 1, 16), up=torch.zeros(16, LARGEST_RANK + 1)), "rank 1025"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_lora_is_refused_in_one_line(case, model, write_lora):
    make, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as caught:
        read(write_lora(*make(model)), model)
    assert "\n" not in str(caught.value)
