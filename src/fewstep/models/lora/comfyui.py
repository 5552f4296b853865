"""A workflow of ComfyUI that paints with a LoRA as it was made to: a file to drag into the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.models.card import LCM_LORA, StudentCard, read_method
from fewstep.models.family import LatentModel
from fewstep.models.lora.few_step import DEFAULT_STEPS
from fewstep.models.lora.file import KOHYA_FILE
from fewstep.models.stock_scheduler import stock_scale
from fewstep.models.vocabulary import find_vocabulary

WORKFLOW_FILE = "comfyui.json"
LCM_GRID = 50
"""Counts the times among which ComfyUI's `lcm` parameterisation lets a network answer, as the released LCM-LoRAs do."""
_SINGLE_FILES = (".safetensors", ".ckpt")
"""Are the endings of what ComfyUI calls a checkpoint; any other base is a folder of diffusers."""
_WIDTH, _HEIGHT = 320, 260
_VALUES = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
"""Lists the kinds of inputs that a node has a field for; all others come from another node."""

NODES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({"ckpt_name": "COMBO"}, ("MODEL", "CLIP", "VAE")),
    "LoraLoader": (
        {"model": "MODEL", "clip": "CLIP", "lora_name": "COMBO", "strength_model": "FLOAT", "strength_clip": "FLOAT"},
        ("MODEL", "CLIP"),
    ),
    "ModelSamplingDiscrete": ({"model": "MODEL", "sampling": "COMBO", "zsnr": "BOOLEAN"}, ("MODEL",)),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSampler": (
        {
            "model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT", "sampler_name": "COMBO",
            "scheduler": "COMBO", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT",
            "denoise": "FLOAT",
        },
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, ()),
}  # fmt: skip
"""Lists inputs and outputs of the nodes that are used, in ComfyUI's order."""
SAMPLING = {"epsilon": "eps", "v_prediction": "v_prediction", "sample": "x0"}
"""Says what ComfyUI calls that which a network predicts."""


@dataclass
class _Workflow:
    """Holds nodes and the links between them, in the format that ComfyUI's window saves."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(self, kind: str, place: tuple[int, int], given: Mapping[str, Any]) -> int:
        """Adds a node at a column and a row; returns its id.

        `given` has a value for every input, and (node, output) where it comes from another one.
        """
        inputs, outputs = NODES[kind]
        number = len(self.nodes) + 1
        slots: list[dict[str, Any]] = []
        values: list[Any] = []
        for name, wanted in inputs.items():
            if wanted in _VALUES:
                values.append(given[name])
                if name == "seed":
                    values.append("randomize")  # what the window does with it after each picture
                continue
            origin, output = given[name]
            self.links.append([len(self.links) + 1, origin, output, number, len(slots), wanted])
            self.nodes[origin - 1]["outputs"][output]["links"].append(len(self.links))
            slots.append({"name": name, "type": wanted, "link": len(self.links)})
        self.nodes.append({
            "id": number, "type": kind, "pos": [place[0] * (_WIDTH + 50), place[1] * (_HEIGHT + 40)],
            "size": [_WIDTH, _HEIGHT], "flags": {}, "order": number - 1, "mode": 0, "inputs": slots,
            "outputs": [{"name": each, "type": each, "links": []} for each in outputs],
            "properties": {"Node name for S&R": kind}, "widgets_values": values,
        })  # fmt: skip
        return number

    def to_json(self) -> dict[str, Any]:
        return {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip


def make_workflow(model: LatentModel, card: StudentCard) -> dict[str, Any] | None:
    """Returns the workflow that paints with a LoRA on its base; None where ComfyUI has no nodes to sample so with."""
    if model.family.comfyui_loader is None or card.method != LCM_LORA:
        return None
    method = read_method(card, model.source)
    if method.told_end or method.gamma not in (0, 1):
        return None
    flow, side = _Workflow(), model.resolution
    base = str(card.teacher)
    loader = flow.add(model.family.comfyui_loader, (0, 0), {"ckpt_name": _name_checkpoint(base)})
    if Path(base).suffix not in _SINGLE_FILES:
        flow.nodes[-1]["title"] = f"Choose the base here: {Path(base).name}, as a single file"
    lora = flow.add(
        "LoraLoader", (1, 0),
        {"model": (loader, 0), "clip": (loader, 1), "lora_name": KOHYA_FILE, "strength_model": 1, "strength_clip": 1},
    )  # fmt: skip
    sampled, sampling = lora, _name_sampling(model, card, redraws=method.gamma == 1)
    if sampling:
        sampled = flow.add("ModelSamplingDiscrete", (2, 0), {"model": (lora, 0), **sampling})
    positive, negative = (
        flow.add("CLIPTextEncode", (2, row), {"text": text, "clip": (lora, 1)})
        for row, text in ((1, _choose_prompt(model)), (2, ""))
    )
    latent = flow.add("EmptyLatentImage", (1, 1), {"width": side, "height": side, "batch_size": 1})
    sampler = flow.add(
        "KSampler", (3, 0),
        {
            "model": (sampled, 0), "seed": 0, "steps": card.sampling_steps or DEFAULT_STEPS,
            "cfg": stock_scale(model.family, card), "sampler_name": "lcm" if method.gamma == 1 else "euler",
            "scheduler": "simple", "positive": (positive, 0), "negative": (negative, 0), "latent_image": (latent, 0),
            "denoise": 1,
        },
    )  # fmt: skip
    decoded = flow.add("VAEDecode", (4, 0), {"samples": (sampler, 0), "vae": (loader, 2)})
    flow.add("SaveImage", (5, 0), {"images": (decoded, 0), "filename_prefix": "fewstep"})
    return flow.to_json()


def _name_sampling(model: LatentModel, card: StudentCard, *, redraws: bool) -> dict[str, Any] | None:
    """Returns the values of ModelSamplingDiscrete; None where what ComfyUI finds in the base's file is right."""
    predicted, zero = model.network.parameterisation, bool(model.scheduler_config.get("rescale_betas_zero_snr"))
    if predicted == "epsilon" and not zero:
        return {"sampling": "lcm", "zsnr": False} if redraws and card.grid_size == LCM_GRID else None
    return {"sampling": SAMPLING[predicted], "zsnr": zero}


def _choose_prompt(model: LatentModel) -> str:
    """Returns a prompt to replace, of the model's own words where it has no others."""
    known = find_vocabulary(model.conditioner, model.card.learnt_words or ())
    return known.examples[-1] if known and known.examples else "a photo of a cat"


def _name_checkpoint(teacher: str) -> str:
    """Returns what the base is called among ComfyUI's checkpoints, as far as its own name tells."""
    name = Path(teacher).name
    return name if Path(name).suffix in _SINGLE_FILES else f"{name}.safetensors"
