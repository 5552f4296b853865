"""Options that commands share: which model they read, whatever its files say of it, and what they compute on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from fewstep import assets
from fewstep.errors import UserError
from fewstep.precision import PaintPrecision

Engine = Literal["torch", "openvino"]
"""What computes a model."""
Offload = Literal["auto", "on", "off"]
"""Whether the parts of a model take turns on a GPU."""
Compile = Literal["off", "blocks", "graphs"]
"""How torch.compile computes a network's repeated blocks, if it does."""
NETWORK_OPTION = "unet"
"""The option that names a repository which is a network alone."""
OF_BETAS = ("epsilon", "v_prediction", "sample")
"""What networks on a schedule of betas predict, in diffusers' names."""


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Says what holds of a model whatever its files say."""

    prediction_type: Literal["auto", "epsilon", "v_prediction", "sample"] = "auto"
    """What the network predicts. `auto` is what the model's files say; any other decides over them."""
    zero_snr: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The model was trained on a schedule that ends in noise alone (zero-terminal SNR), whatever its files say."""
    unet: Annotated[str, tyro.conf.arg(aliases=["--transformer"])] = ""
    """A UNet or a transformer alone, used in place of the model's own: the folder or Hub id of a repository
    (config.json and its weights), or a single file, in fp8, bf16, fp16 or fp32."""

    base_lora: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(aliases=["--teacher-lora"])] = ()
    """A LoRA that is merged into the model before all else, as in `style.safetensors:0.9`: so a style, or several, is
    distilled together with its base. May be given several times."""

    @property
    def network(self) -> str:
        """Returns the repository or folder whose network stands in for the model's own, or empty."""
        return self.unet

    def stated(self, *, network: bool = True) -> dict[str, Any]:
        """Returns what was given, for records; but for the network, if so asked."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(Overrides)}
        return {
            name: value
            for name, value in values.items()
            if value not in ("", "auto", False, ()) and (network or name != "unet")
        }


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Says what a command computes on."""

    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or mps. `auto` takes a GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class SingleFileOptions:
    """Says how a command reads a model that is a single file."""

    base_config: str = ""
    """Diffusers folder with the configurations and tokenizers for a model that is a single file; it needs no weights.
    By default they are fetched from the Hub."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SingleFileOptions, Overrides):
    """Says how a command reads its model."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions(ModelOptions):
    """Says which LoRAs a command puts on its model."""

    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A LoRA file, the folder of a run or of peft, or a Hub id, as in `org/name` or `org/name/file.safetensors`, with
    its scale after a colon, as in `style.safetensors:0.8`; without one the scale is 1. May be given several times."""


@dataclass(frozen=True, kw_only=True)
class FewStepOptions(LoraOptions, DeviceOptions):
    """Says which few-step model a command paints with."""

    model: str = assets.SCENES_LCM
    """The few-step model: `scenes-lcm` (bundled), a folder that `distill`, `finetune` or `combine` wrote, or any
    LatentConsistencyModelPipeline, as a folder or a Hub id. A run that has not ended is painted with from its newest
    checkpoint. With an LCM-LoRA in --lora it is the LoRA's base, such as
    `scenes` (bundled)."""
    sampler: str = "auto"
    """How the steps follow each other: `deterministic` goes on from where an answer lands, `consistency` from a clean
    answer with fresh noise; a number from 0 to 1 takes that share of fresh noise. `auto` is what the model was made
    for."""
    allow_download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let a file name what is fetched from the Hub, as a LoRA's header does with the base that it was made for. By
    default only what the command line names is."""


@dataclass(frozen=True, kw_only=True)
class PainterOptions(FewStepOptions):
    """Says how a command runs a few-step model."""

    precision: PaintPrecision = "auto"
    """Number format in which the networks are kept and compute. `auto` takes bf16 on a GPU that computes in it, fp16 on
    an older GPU, else fp32. The autoencoder stays in fp32 where it says that it must. `int8` (--engine openvino, needs
    fewstep[int8]) has 8-bit weights and activations in the UNet, on a processor with VNNI: a seventh less time than
    bf16 takes on the bundled model, pictures a little other; it is calibrated once for each picture size and number,
    which takes minutes."""
    calibration_prompts: str = ""
    """Text file of prompts, one a line, that `int8` is calibrated on; give some like those that will be painted, about
    eight and at most 64. By default bundled ones."""
    offload: Offload = "auto"
    """Keep each part of the model on the GPU only while it computes: slower, and about half the memory. `auto` does so
    where the GPU cannot hold all of them."""
    engine: Engine = "torch"
    """What runs the network. `openvino` (needs fewstep[openvino]) is faster on a CPU; it compiles the model once for
    each picture size, with its LoRAs merged in at fixed scales, and keeps the result."""
    compile: Compile = "off"
    """Have torch.compile compute the blocks that the network repeats: `blocks` compiles each kind once, which takes
    from half a minute to some minutes at the first picture of a size, and is worth it where many pictures follow;
    `graphs` records CUDA graphs of them too (a GPU alone; for pictures of one size and number)."""
    tiny_decoder: str = ""
    """Small decoder in TAESD's layout for the model's latents, as a diffusers folder or a file. It is faster than the
    model's own and less exact."""

    def check_engine(self) -> None:
        """Raises UserError for options that only one engine or precision has a use for."""
        check_int8(self.engine, self.precision, self.calibration_prompts)
        if self.engine == "openvino" and self.compile != "off":
            raise UserError(f"--engine openvino compiles by itself; leave --compile {self.compile} out")


def check_int8(engine: Engine, precision: PaintPrecision, calibration_prompts: str) -> None:
    """Raises UserError where 8 bits are asked of torch, or prompts are given that nothing is calibrated on."""
    if precision == "int8" and engine != "openvino":
        raise UserError("precision int8 is OpenVINO's; give --engine openvino with it, or another --precision")
    if calibration_prompts and precision != "int8":
        raise UserError("calibration_prompts are for --engine openvino --precision int8 alone; leave them out")


def read_overrides(record: Mapping[str, Any]) -> Overrides:
    """Reads what `Overrides.stated` gave back from a record whose values may be text."""
    kind: Any = record.get("prediction_type")
    return Overrides(
        prediction_type=kind if kind in OF_BETAS else "auto", zero_snr=str(record.get("zero_snr", False)) == "True",
        unet=str(record.get("unet") or ""), base_lora=_read_loras(record.get("base_lora")),
    )  # fmt: skip


def _read_loras(said: object) -> tuple[str, ...]:
    held = said or []
    if isinstance(held, str):
        try:
            held = json.loads(held)
        except ValueError:
            held = None
    if not isinstance(held, list | tuple) or not all(isinstance(each, str) for each in held):
        raise UserError(f"fewstep.base_lora is {said!r:.60} in the record of a model; expected a list of LoRAs")
    return tuple(held)
