"""What no other family has: text that ends with the longest prompt, and names that alone tell what paints."""

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model
from fewstep.models.scheduler import Overrides
from flow_miniatures import FLOWS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(flow_tokenizer, tmp_path_factory):
    return FLOWS["qwen"](flow_tokenizer, tmp_path_factory.mktemp("qwen") / "base")


def test_text_ends_with_the_longest_prompt_and_is_masked_where_one_is_shorter(folder):
    model, given = load_latent_model(folder, CPU), {}
    model.network.backbone.register_forward_pre_hook(
        lambda _module, _args, named: given.update(named), with_kwargs=True
    )
    z, t = torch.randn(2, 16, 8, 8), torch.tensor([700, 300])

    def ask(prompts, **changes):
        cond = model.conditioner.encode(prompts) | changes
        with torch.no_grad():
            return model.network(z[: len(prompts)], t[: len(prompts)], cond, None).z_0, cond

    long, short = ask(["a red star on a blue square"])[0], model.conditioner.encode(["a star"])
    assert given["encoder_hidden_states_mask"] is None
    both, cond = ask(["a red star on a blue square", "a star"])
    lengths = cond["mask"].sum(1).long().tolist()
    assert lengths[1] == int(short["mask"].sum()) < lengths[0] < 512
    assert given["encoder_hidden_states"].shape[1] == lengths[0]
    assert given["encoder_hidden_states_mask"].sum(1).tolist() == lengths
    assert torch.allclose(both[:1], long, atol=1e-5)
    spoilt = torch.where(cond["mask"][..., None] > 0, cond["text"], 7.0)
    assert torch.allclose(ask(["a red star on a blue square", "a star"], text=spoilt)[0], both, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Qwen-Image-Lightning-8steps", "is called lightning"), ("qwen_image_distill_full_fp8", "is called distill"),
        ("qwen_image_edit_2509_fp8", "edits pictures"), ("QwenImageEdit", "edits pictures"),
        ("Qwen-Image-Layered", "edits pictures or paints layers"), ("qwen_image_2512_bf16", None),
        ("unedited", None), ("Credits", None), ("my-undistilled-qwen", None),
    ],
)  # fmt: skip
def test_a_transformers_name_tells_whether_it_paints(name, said, folder, tmp_path):
    file = tmp_path / f"{name}.safetensors"
    own = load_latent_model(folder, CPU).network.backbone.state_dict()
    save_file({key: value.clone() for key, value in own.items()}, file)
    if said is None:
        load_latent_model(folder, CPU, overrides=Overrides(unet=str(file)))
        return
    with pytest.raises(UserError, match=said):
        load_latent_model(folder, CPU, overrides=Overrides(unet=str(file)))
