"""Whatever a .safetensors file holds, it is read as a LoRA or refused in one line, and the model stays whole."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach, detach
from fewstep.models.lora.combining import combine_loras
from fewstep.models.lora.file import read_lora
from miniatures import save_miniature

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I64": 8, "I32": 4, "I8": 1,
    "U8": 1, "BOOL": 1, "C64": 8, "F4": 0.5,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MODULES = {  # name: inputs and outputs
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": ((16,), (16,)),
    "down_blocks.0.resnets.0.conv1": ((8, 3, 3), (8, 1, 1)),
    "down_blocks.1.attentions.0.proj_in": ((16, 1, 1), (16, 1, 1)),
}
ENDS = {
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_down.weight": "down", "lora_up.weight": "up",
    "lora.down.weight": "down", "alpha": "one", "lora_mid.weight": "mid", "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude", "hada_w1_a": "up", "lora_B.bias": "one", "diff": "up",
}  # fmt: skip
PREFIXES = (*("unet.", "lora_unet_", "base_model.model.", "") * 3, "text_encoder.", "transformer.")


@st.composite
def tensors(draw):
    """Halves that fit each other and the module more often than not."""
    made, rank = {}, draw(st.sampled_from([1, 2, 4, 4, 4, 0]))
    rarely = st.sampled_from([*[False] * draw(st.sampled_from([3, 9])), True])
    for module in draw(st.lists(st.sampled_from([*MODULES]), min_size=1, unique=True)):
        into, out = MODULES[module]
        prefix = draw(st.sampled_from(PREFIXES))
        name = prefix + (module.replace(".", "_") if prefix.endswith("_") else module)
        shapes = {
            "down": (rank, *into), "up": (out[0], rank, *out[1:]), "mid": (rank, rank, 3, 3), "one": (),
            "magnitude": (out[0], *[1] * len(into)),
        }  # fmt: skip
        pairs = [["lora_down.weight", "lora_up.weight", "alpha"], ["lora_A.weight", "lora_B.weight"]]
        more = draw(st.sets(st.sampled_from([*ENDS]), max_size=2)) if draw(rarely) else ()
        for end in dict.fromkeys([*draw(st.sampled_from(pairs)), *more]):
            odd = st.lists(st.integers(0, 17), max_size=4).map(tuple)
            shape = draw(odd) if draw(rarely) else shapes[ENDS[end]]
            made[f"{name}.{end}"] = (draw(st.sampled_from([*BYTES] if draw(rarely) else [*FLOATS])), shape)
    if draw(rarely):
        kind = draw(st.sampled_from(["clip_l", "clip_g", "string_to_param.*", "other", ""]))
        made[f"bundle_emb.sks.{kind}"] = ("F32", draw(st.sampled_from([(2, 16), (16,), (0, 16), (2, 5), ()])))
    return made


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("conv1^($.*", max_size=6), inner, max_size=2),
    max_leaves=4,
)
ENTRIES = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights")
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "lora_adapter_metadata": st.dictionaries(
            st.sampled_from([f"{part}{name}" for name in ENTRIES for part in ("unet.", "")]), JSON, max_size=4
        ).map(json.dumps)
        | st.text(max_size=5),
        "ss_network_alpha": st.text(max_size=5),
    },
)


def write(path, made, header, filling):
    entries, place = {"__metadata__": header}, 0
    for name, (dtype, shape) in made.items():
        size = int(BYTES[dtype] * torch.Size(shape).numel())
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries).encode()
    data = (filling * (place // len(filling) + 1))[:place]
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture(scope="module")
def model(random_teacher, tmp_path_factory):
    tokenizer = CLIPTokenizer.from_pretrained(random_teacher / "tokenizer")
    return load_latent_model(save_miniature("sd15", tokenizer, tmp_path_factory.mktemp("sd15")), torch.device("cpu"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=tensors(),
    header=st.just({}) | HEADERS,
    filling=st.sampled_from([b"\0", b"\x00\x3c", bytes(range(60, 66)), b"\xff\x7f"]),
)
def test_no_lora_file_ends_in_anything_but_a_line(made, header, filling, model, tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, made, header, filling)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    try:
        lora = read_lora(path, model.parts, model.family.lora)
    except UserError:
        event("refused")
        return
    event("read")
    attach(model.parts, lora.pairs, "x", 0.5)
    detach(model.parts, "x")
    now = {name.replace(".base_layer", ""): value for name, value in model.network.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in before.items() if ".base_layer" not in name)
    for name, pair in lora.pairs.items():
        weight = model.network.backbone.get_submodule(name.removeprefix("unet.")).weight
        assert pair.delta(weight).isfinite().all()
        if pair.magnitude is None:
            assert combine_loras([({name: pair}, 1.0)])[name].delta().shape == weight.shape
