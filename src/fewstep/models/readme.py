"""The card of a student in words for people: where it comes from, how it is used, what it scored."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fewstep import assets
from fewstep.files import write_whole
from fewstep.models.card import LCD, LCF, LCM_LORA, LORA_FILE, STYLE_LORA, StudentCard, read_method, split_scale
from fewstep.models.options import read_overrides

_KINDS = {
    LCD: (
        "A Latent Consistency Model (arXiv 2310.04378) distilled with fewstep",
        "latent-consistency-model, few-step",
    ),
    LCF: (
        "A Latent Consistency Model (arXiv 2310.04378) fine-tuned with fewstep",
        "latent-consistency-model, few-step",
    ),
    LCM_LORA: ("An LCM-LoRA (arXiv 2311.05556) distilled with fewstep", "lora, lcm-lora, few-step"),
    STYLE_LORA: ("A style as a LoRA, trained with fewstep", "lora"),
}


_ORIGIN = {LCF: "started from", STYLE_LORA: "base"}


def model_card(card: StudentCard, scores: Sequence[str] = ()) -> str:
    """Writes the card in Markdown: where the model comes from, how it is used, what it scored."""
    assert card.method is not None
    what, tags = _KINDS[card.method]
    steps = "1 to 8"
    if card.consistency is not None:
        named = read_method(card, "the card")
        what = f"A few-step {'LoRA' if card.lora_rank else 'model'} by {named.name} ({named.source}), made with fewstep"
        tags = "lora, few-step" if card.lora_rank else "few-step"
        steps = str(card.sampling_steps or "1 to 8")
    lora, few_step = card.lora_rank is not None, card.method != STYLE_LORA
    training = f"{card.steps} steps of {card.batch_size}"
    training += f", solver {card.solver}, skip {card.skip}" if few_step else ""
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [{tags}, fewstep]",
        "---",
        "",
        f"# {card.name}",
        "",
        f"{what}{f': {steps} steps in place of 50' if few_step else ''}.",
        "",
        "| | |",
        "|---|---|",
        f"| {_ORIGIN.get(card.method, 'teacher')} | {' + '.join(_list_origins(card))} |",
        f"| data | {card.data} |",
        f"| training | {training} |",
        *([f"| guidance | {_describe_guidance(card)} |"] if few_step else []),
        *([f"| rank, alpha | {card.lora_rank}, {card.lora_alpha:g} |"] if lora else []),
        "",
        "```python",
        *(_show_lora_usage(card) if lora else _show_usage(card)),
        "```",
    ]
    if few_step:
        lines += ["", "A negative prompt has no effect: guidance is inside the network."]
    if scores:
        lines += ["", "## Scores", "", *scores]
    return "\n".join(lines) + "\n"


def _list_origins(card: StudentCard) -> list[str]:
    said = read_overrides(vars(card))
    network = [f"the network of {said.network}"] if said.network else []
    return [str(card.teacher), *network, *said.base_lora]


def _describe_guidance(card: StudentCard) -> str:
    assert card.guidance_range is not None
    low, high = card.guidance_range
    scale, omega = f"{card.guidance_scale:g}", "ω" if card.stock_scale == 0 else "ω + 1"
    inside = card.stock_scale is not None and card.stock_scale == card.guidance_scale
    if low == high and inside:
        return f"diffusers' `guidance_scale` {scale} ({omega})"
    if low == high and (card.method == LCM_LORA or _is_built_in(card)):
        return f"diffusers' `guidance_scale` {scale} ({omega}), built in"
    return f"diffusers' `guidance_scale` {low:g} to {high:g} ({omega}), {scale} by default"


def _is_built_in(card: StudentCard) -> bool:
    """Says whether a whole student is given no guidance by stock pipelines, or what its teacher was given."""
    return card.shift is not None or card.stock_scale is not None


def _show_usage(card: StudentCard) -> list[str]:
    own = read_method(card, "the card").told_end
    code = ', custom_pipeline="this folder", trust_remote_code=True' if own else ""
    scale = _ask_no_guidance(card) if _is_built_in(card) else f"{card.guidance_scale:g}"
    asked = f"{_ask_steps(card)}, {card.stock_guidance or 'guidance_scale'}={scale}"
    return [
        *_import_torch(card),
        "from diffusers import DiffusionPipeline",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("this folder"{code}{_ask_dtype(card)})',
        *_show_offload(card),
        *_show_seed(card),
        f"image = pipe({_name_prompt(card)}, {asked}{_ask_eta(card)}).images[0]",
    ]


def _name_prompt(card: StudentCard) -> str:
    """Returns the prompt as a pipeline of diffusers is given it: some of flows take pictures first."""
    return '"a prompt"' if card.shift is None else 'prompt="a prompt"'


def _ask_steps(card: StudentCard) -> str:
    """Returns how a pipeline of diffusers is asked for a number of steps: of a flow, by where they stand."""
    steps = card.sampling_steps or 4
    sigmas = (card.sigmas or {}).get(str(steps))
    size = "" if card.resolution is None else f", height={card.resolution}, width={card.resolution}"
    more = "".join(f", {name}={value}" for name, value in (card.stock_settings or {}).items())
    return (f"num_inference_steps={steps}" if sigmas is None else f"sigmas={sigmas}") + size + more


def _ask_no_guidance(card: StudentCard) -> str:
    """Returns the `guidance_scale` that a stock pipeline is to be given."""
    return f"{1 if card.stock_scale is None else card.stock_scale:g}"


def _import_torch(card: StudentCard) -> list[str]:
    return ["import torch"] if card.stock_large or _draws_from_torch(card) else []


def _ask_dtype(card: StudentCard) -> str:
    return ", torch_dtype=torch.bfloat16" if card.stock_large else ""


def _show_offload(card: StudentCard) -> list[str]:
    """Returns what brings a large model's parts to a GPU one by one."""
    said = 'pipe.enable_model_cpu_offload()  # or pipe.to("cuda"), where all of it fits'
    return [said] if card.stock_large else []


def _show_seed(card: StudentCard) -> list[str]:
    """Returns what makes a picture of a flow the same again: its noise between steps is torch's own."""
    return ["torch.manual_seed(7)"] if _draws_from_torch(card) else []


def _draws_from_torch(card: StudentCard) -> bool:
    return card.shift is not None and card.method != STYLE_LORA and read_method(card, "the card").gamma == 1


def _ask_eta(card: StudentCard) -> str:
    """Returns the share of noise that a pipeline of diffusers must be told at each call, or nothing."""
    gamma = read_method(card, "the card").gamma
    return f", eta={gamma:g}" if 0 < gamma < 1 and card.shift is None else ""


def _show_lora_usage(card: StudentCard) -> list[str]:
    if card.method == LCM_LORA and read_method(card, "the card").told_end:
        return [
            "import fewstep  # which tells the network where each step lands: no other tool has a place for that", "",
            'pipe = fewstep.load("this folder")', 'image = pipe("a prompt", steps=4)[0]',
        ]  # fmt: skip
    if card.stock_loras is False:
        return _show_merged_usage(card)
    few_step = card.method == LCM_LORA
    method = read_method(card, "the card")
    kind = method.scheduler if card.shift is None else method.flow_scheduler
    settings = {
        "LCMScheduler": f"original_inference_steps={card.grid_size}",
        "DDIMScheduler": 'timestep_spacing="trailing", clip_sample=False',
        "TCDScheduler": "original_inference_steps=1000, clip_sample=False",
    }.get(kind, "")
    name = "lcm" if kind == "LCMScheduler" else "settings"
    scheduler = [f"pipe.scheduler = {kind}(shift={card.shift:g})"] if card.shift is not None else [
        f"{name} = dict({settings})", f"pipe.scheduler = {kind}.from_config(pipe.scheduler.config, **{name})",
    ]  # fmt: skip
    guidance = card.stock_guidance or "guidance_scale"
    asked = f", {_ask_steps(card)}, {guidance}={_ask_no_guidance(card)}{_ask_eta(card)}" if few_step else ""
    bundled = card.teacher == assets.SCENES
    base = "assets.scenes_teacher()" if bundled else f'"{card.teacher}"'
    return [
        *_import_torch(card),
        "from diffusers import DiffusionPipeline" + (f", {kind}" if few_step else ""),
        *(["from fewstep import assets"] if bundled else []),
        "",
        f"pipe = DiffusionPipeline.from_pretrained({base}{_ask_dtype(card)})",
        *(scheduler if few_step else []),
        *_load_loras(card),
        *_show_offload(card),
        *_show_seed(card),
        f"image = pipe({_name_prompt(card)}{asked}).images[0]",
    ]


def _show_merged_usage(card: StudentCard) -> list[str]:
    """Returns the lines that paint with a LoRA where no pipeline of diffusers loads one."""
    loras = " ".join(f"--lora {each}" for each in (*(card.base_lora or ()), '"this folder"'))
    guidance = card.stock_guidance or "guidance_scale"
    few_step = (
        f", {_ask_steps(card)}, {guidance}={_ask_no_guidance(card)}{_ask_eta(card)}" if card.method == LCM_LORA else ""
    )
    return [
        "# diffusers' pipeline loads no LoRA here; this makes one model of it and its base:",
        f"# fewstep combine --base {card.teacher} {loras} --merged --out merged",
        *_import_torch(card), "from diffusers import DiffusionPipeline", "",
        f'pipe = DiffusionPipeline.from_pretrained("merged"{_ask_dtype(card)})', *_show_offload(card),
        f'image = pipe(prompt="a prompt"{few_step}).images[0]',
    ]  # fmt: skip


def _load_loras(card: StudentCard) -> list[str]:
    """Returns the lines that hang a LoRA on a pipeline of diffusers, beside those that its base was merged with."""
    if not card.base_lora:
        return [f'pipe.load_lora_weights("this folder", weight_name="{LORA_FILE}")']
    given = [split_scale(each) for each in card.base_lora]
    names = [*(f"style{i}" for i in range(len(given))), "few_step"]
    places = [*((name, "") for name, _ in given), ("this folder", f', weight_name="{LORA_FILE}"')]
    return [
        *(
            f'pipe.load_lora_weights("{place}"{file}, adapter_name="{name}")'
            for (place, file), name in zip(places, names, strict=True)
        ),
        f"pipe.set_adapters({json.dumps(names)}, {[*(scale for _, scale in given), 1.0]})",
    ]


def name_base(text: str, base: str, given: str) -> str:
    """Returns a card in words that names another base wherever `model_card` named `base`."""
    text = re.sub(
        rf"(?m)^(\| (?:teacher|base|started from) \| ){re.escape(base)}(?= )", lambda row: row[1] + given, text
    )
    text = text.replace(f"# fewstep combine --base {base} ", f"# fewstep combine --base {given} ")
    text = text.replace(f'from_pretrained("{base}"', f'from_pretrained("{given}"')
    if base == assets.SCENES:
        text = text.replace("from fewstep import assets\n", "").replace("assets.scenes_teacher()", f'"{given}"')
    return text


def write_model_card(folder: Path, card: StudentCard, scores: Sequence[str] = ()) -> None:
    """Writes the card in words as README.md, with a table of scores if there is one."""
    with write_whole(folder / "README.md", durable=True) as draft:
        draft.write_text(model_card(card, scores))
