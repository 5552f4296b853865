"""What a latent diffusion model is made of, and what its family knows.

All that one layout of network, text encoders and autoencoder asks for stands in one file of `families/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.diffusion.prediction import Cond, Rescale
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import UserError
from fewstep.models.card import LCD, LCF, LCM_LORA, StudentCard
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner
from fewstep.models.network import BackboneNetwork, have_same_weights
from fewstep.models.options import Overrides
from fewstep.precision import Storage


@dataclass(frozen=True)
class LatentModel:
    """A teacher, or a student that fewstep or another wrote; `network.takes_omega` tells which."""

    source: str
    """Folder, Hub id or single file that it was loaded from."""
    family: Family
    network: BackboneNetwork
    codec: Codec
    conditioner: Conditioner
    scheduler_config: dict[str, Any]
    card: StudentCard = field(default_factory=StudentCard)
    """Is what fewstep recorded of a student; empty for other models."""

    @property
    def is_few_step(self) -> bool:
        """Tells whether it paints in a few steps as it is, with guidance as an input or built in."""
        return self.is_student or self.card.method == LCM_LORA

    @property
    def is_student(self) -> bool:
        """Tells whether it is a few-step model whose weights can go on learning as such."""
        told = self.network.takes_omega and not self.family.guided_inside
        return told or self.family.records_student(self.card)

    home: torch.device | None = None
    """Where its parts compute, if they rest elsewhere."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.home or self.network.backbone.device
        return device

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Returns what LoRA files may adapt, under the names that they use."""
        return {self.family.lora.part: self.network.backbone, **self.conditioner.encoders}

    def find_broken(self) -> str | None:
        """Returns the name of one of the weights whose tensor, as far as it is here, holds NaN or infinity, if any."""
        parts = {**self.parts, "vae": self.codec.tiny_decoder or self.codec.autoencoder}
        weights = ((f"{part}.{name}", value) for part, each in parts.items() for name, value in each.named_parameters())
        own = ((name, value.to_local() if hasattr(value, "to_local") else value) for name, value in weights)
        # A sum takes no memory beside the weights, and is neither where all of them are numbers.
        return next((name for name, value in own if not value.sum(dtype=torch.float32).isfinite()), None)

    @property
    def schedule(self) -> Schedule:
        return self.network.schedule

    def take_side(self, side: int) -> None:
        """Puts the network on the schedule of pictures of `side` pixels, on which a flow's shift may depend."""
        self.network.schedule = self.family.find_schedule(self, side)

    @property
    def resolution(self) -> int:
        """Returns the side in pixels of the pictures that the model was trained on."""
        side = self.family.read_side(self.network.backbone.config, self.codec.autoencoder.config)
        return self.card.resolution or side

    def share_encoders(self, other: LatentModel) -> LatentModel:
        """Returns the same with the other's autoencoder and text encoders, where these have the same weights."""
        theirs = other.conditioner.encoders
        encoders = {
            name: theirs[name] if name in theirs and have_same_weights(module, theirs[name]) else module
            for name, module in self.conditioner.encoders.items()
        }
        codec = self.codec
        if have_same_weights(codec.autoencoder, other.codec.autoencoder):
            codec = dataclasses.replace(codec, autoencoder=other.codec.autoencoder)
        return dataclasses.replace(self, conditioner=self.conditioner.with_encoders(encoders), codec=codec)

    def to(self, device: torch.device) -> LatentModel:
        """Moves every part there, and returns the model."""
        self.network.backbone.to(device)
        self.network.schedule = self.network.schedule.to(device)
        self._move_surroundings(device)
        return self

    def settle_around(self, home: torch.device) -> LatentModel:
        """Returns the model with every part but its network at `home`, where that is to follow."""
        self.network.schedule = self.network.schedule.to(home)
        self._move_surroundings(home)
        return dataclasses.replace(self, home=home)

    def rest(self) -> None:
        """Puts what a training does not need, once its pictures are encoded, into main memory."""
        self._move_surroundings(torch.device("cpu"))

    def dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the format in which weights are kept where `dtype` is asked for."""
        return torch.float32 if dtype == torch.float16 and self.family.overflows_in_fp16 else dtype

    @property
    def rescale(self) -> Rescale | None:
        """Returns the rule that guidance follows, where it is not plain."""
        return self.network.rescale if self.family.rescales_guidance else None

    @property
    def last_sigma(self) -> float:
        """Returns σ at the last step of a flow's own sampler, where that is the same in any number of steps; else 0."""
        return float(self.scheduler_config.get("shift_terminal") or 0.0) if self.family.is_flow else 0.0

    def null(self) -> Cond | None:
        """Returns the condition that guidance leads away from, batch of one; None where guidance is an input."""
        return None if self.family.guided_inside else self.conditioner.null()

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Has everything on the network's device while it lasts, to encode and to paint."""
        before = next(self.codec.autoencoder.parameters()).device
        self._move_surroundings(self.device)
        try:
            yield
        finally:
            self._move_surroundings(before)

    def _move_surroundings(self, device: torch.device) -> None:
        for module in (self.codec.autoencoder, self.codec.tiny_decoder, *self.conditioner.encoders.values()):
            if module is not None:
                module.to(device)

    def read_grid_size(self, default: int = 50) -> int:
        """Returns how many times the sampler may choose from. Raises UserError where the scheduler says none."""
        value = self.scheduler_config.get("original_inference_steps", default)
        if self.card.consistency is not None and self.card.grid_size is not None:
            value = self.card.grid_size  # its scheduler is of another kind, whose entry means another thing
        if type(value) is not int or not 1 <= value <= self.schedule.num_steps:
            raise UserError(
                f"{self.source} has original_inference_steps {value!r} in scheduler_config.json; allowed: 1 to "
                f"{self.schedule.num_steps}"
            )
        return value


@dataclass(frozen=True)
class LoraLayout:
    """How LoRA files call a family's modules."""

    part: str
    """The network's name in a file's keys; it may be left out, as a text encoder's may not."""
    targets: tuple[str, ...]
    """Ends of the names of the modules that an LCM-LoRA adapts."""
    prefixes: Mapping[str, tuple[str, ...]]
    """How kohya's keys of each part begin; the first is written where there is one text encoder, the last where there
    are two."""
    original_names: Callable[[Iterable[str]], dict[str, str]]
    """The network's modules as the family's first code called them, which some files do."""
    original_prefixes: tuple[str, ...]
    """How keys begin that call the network's modules so, with dots between their parts."""
    former_names: Callable[[str, str], tuple[str, ...]]
    """Is what files called a module of a part before, in its place."""
    embedding_parts: Mapping[str, str]
    """The text encoder of each kind of embedding that a file may bring along."""
    original_modules: Callable[[Iterable[str]], Mapping[str, tuple[str, ...]]] = lambda _modules: {}
    """Modules as the family's first code called them, each with those of the network whose rows are its own."""
    is_swapped: Callable[[str, int], bool] = lambda _module, _blocks: False
    """(module, number of blocks) → whether that code has the halves of its rows the other way round."""
    bare_parts: tuple[str, ...] = ()
    """The text encoders whose modules have no prefix within them."""
    portable: bool = False
    """Whether tools load one spelling of diffusers alone rightly: with alpha as part of the weights."""
    kohya_modules: Callable[[Iterable[str]], Mapping[str, tuple[str, ...]]] | None = lambda modules: {
        module: (module,) for module in modules
    }
    """The network's modules as kohya's files have them, each with those of the network that it is; None where no tool
    reads such files."""
    time_layers: tuple[str, ...] = ()
    """The network's two layers that embed its time, after which what embeds the end is made; none where none can be."""

    def in_files(self, part: str, module: str) -> str:
        """Returns a module's name as files have it: transformers' own prefix comes and goes with its version."""
        if part in (self.part, *self.bare_parts) or module == "text_projection":  # which was never within the prefix
            return module
        return f"text_model.{module.removeprefix('text_model.')}"


class Family(ABC):
    """One layout of network, text encoders and autoencoder, whatever its size."""

    name: str
    title: str
    lora: LoraLayout
    parts: tuple[str, ...]
    """The folders of a diffusers pipeline of it; the network's is `lora.part`."""
    pipeline_classes: tuple[str, ...]
    """Names the classes of such pipelines."""
    is_flow: bool = False
    """Whether its schedule is a flow's, and its schedulers those of flow matching."""
    embeds_guidance: bool = True
    """Whether a student's network has an input for guidance; else one value is built into it."""
    overflows_in_fp16: bool = False
    """Whether the network's numbers reach further than fp16's: it is then kept, and computes, in fp32."""
    stock_loras: bool = True
    """Whether stock pipelines load LoRAs."""
    comfyui_loader: str | None = None
    """ComfyUI's node that loads a model of it from one file; None where no workflow is written beside its LoRAs."""
    stock_settings: ClassVar[Mapping[str, bool]] = MappingProxyType({})
    """What stock pipelines are to be given beside a size, so that they paint at it."""
    rescales_guidance: bool = False
    """Whether what guidance comes to follows a rule of its own, the network's `rescale`."""
    guidance_argument: str = "guidance_scale"
    """Is what stock pipelines call their guidance."""
    guided_inside: bool = False
    """Whether its teachers have guidance as an input too: they are asked once, and nothing is added to that."""

    def omega_of(self, guidance_scale: float) -> float:
        """Returns the paper's ω of diffusers' `guidance_scale`, whose 1 is no guidance. Nothing else converts."""
        return guidance_scale - 1

    def guidance_of(self, omega: float) -> float:
        """Returns diffusers' `guidance_scale` of the paper's ω."""
        return omega + 1

    @abstractmethod
    def describe(self, network_config: Mapping[str, Any]) -> str:
        """Names the family for people; says so where only the layout is the family's."""

    def check_painting(self, engine: str, *, tiny_decoder: bool) -> None:  # noqa: B027  # some have a place for all
        """Raises UserError where that engine does not compute its networks, or no tiny decoder knows its latents."""

    @abstractmethod
    def is_few_step(self, network_config: Mapping[str, Any]) -> bool:
        """Says whether a network with these settings has an input for guidance."""

    def refuse(self, network_config: Mapping[str, Any], source: str) -> None:  # noqa: B027  # most refuse none
        """Raises UserError for a model of the layout that cannot be a teacher, by its settings or what it is called."""

    def refuse_index(self, index: Mapping[str, Any], source: str) -> None:  # noqa: B027  # most indices say nothing
        """Raises UserError for a pipeline that cannot be a teacher, by what its model_index.json says."""

    def settings_of_file(self, keys: Iterable[str]) -> Mapping[str, Any]:  # noqa: ARG002  # most files tell nothing
        """Returns what the names of a single file's tensors tell of the network's settings, for `refuse`."""
        return {}

    def find_schedule(self, model: LatentModel, side: int) -> Schedule:  # noqa: ARG002  # most have one for all sizes
        """Returns the schedule of the model's pictures of `side` pixels. Raises UserError where there can be none."""
        return model.schedule

    def records_student(self, card: StudentCard) -> bool:
        """Says whether a card is that of a whole few-step model whose network does not tell it from a teacher."""
        return (self.guided_inside or not self.embeds_guidance) and card.method in (LCD, LCF)

    def predicts(self, scheduler_config: Mapping[str, Any]) -> str:
        """Returns what a network beside such a scheduler predicts, in diffusers' words."""
        return "flow_prediction" if self.is_flow else str(scheduler_config.get("prediction_type", "epsilon"))

    def largest_side(self, network_config: Mapping[str, Any], multiple: int) -> float:  # noqa: ARG002  # most have none
        """Returns the largest side in pixels that a network has places for, of latents of `multiple` pixels."""
        return math.inf

    @abstractmethod
    def read_side(self, network_config: Mapping[str, Any], codec_config: Mapping[str, Any]) -> int:
        """Returns the side in pixels of the pictures of a model with these settings."""

    @abstractmethod
    def recognises(self, network_config: Mapping[str, Any]) -> bool:
        """Says whether a network is of it, by the class and the switches in its config.json, which sizes do not
        change."""

    @abstractmethod
    def recognises_keys(self, keys: Sequence[str], path: Path) -> bool:
        """Says whether a single file holds a model of it, by the names of its tensors. Raises UserError where it does
        and is not whole."""

    @abstractmethod
    def load_folder(
        self, folder: Path, source: str, index: Mapping[str, Any], storage: Storage, overrides: Overrides
    ) -> LatentModel:
        """Loads every part, frozen; the autoencoder in fp32 where it says `force_upcast`. Raises UserError naming what
        is missing or not known."""

    @abstractmethod
    def load_single_file(self, path: Path, base_config: str, storage: Storage, overrides: Overrides) -> LatentModel:
        """Loads a single file; `base_config` is a folder with configurations and tokenizers, or empty for the Hub's."""

    codec_part: str = "vae"
    """Is the folder of the autoencoder."""

    @abstractmethod
    def load_codec(self, place: Path, base_config: str, device: torch.device) -> tuple[Codec, int]:
        """Loads the autoencoder alone out of a folder or a single file, in fp32, frozen; returns it with the side in
        pixels of the model's pictures. Raises UserError."""

    def make_codec(self, autoencoder: Any) -> Codec:
        """Puts an autoencoder of the family, on its device, to its latents' scale. Raises UserError."""
        return Codec(autoencoder)

    @abstractmethod
    def make_pipeline(self, model: LatentModel, network: BackboneNetwork, scheduler: Any) -> Any:
        """Makes the pipeline of the class that people load such a model with."""

    def mark_few_step(self, pipeline: Any) -> Any:
        """Returns a pipeline whose own settings say that it paints in few steps, where the layout has such."""
        return pipeline

    @abstractmethod
    def write_any_step_pipeline(self, network: BackboneNetwork) -> str:
        """Writes the code of a pipeline of diffusers that tells a network where each of its answers shall land."""

    @abstractmethod
    def spec_architecture(self, parameterisation: str) -> str:
        """Returns ModelSpec 1.0.1's name of the base, without what is hung on it."""

    @abstractmethod
    def spec_prediction(self, parameterisation: str) -> str:
        """Returns ModelSpec 1.0.1's name of what the network outputs."""

    @abstractmethod
    def kohya_header(self) -> dict[str, str]:
        """Returns what kohya's files say of their base."""

    # What is known of the released models, to count and to measure without their weights.

    released_side: int
    """Is the side in pixels of the released models' pictures."""
    released_latent_channels: int
    released_multiple: int = 8
    """Pixels a latent of theirs, in each direction."""
    patch: int = 1
    """Latents that the network takes as one, in each direction."""
    encoder_bytes: int
    """Counts the released autoencoder and text encoders, in fp32."""

    @abstractmethod
    def random_model(self, device: torch.device, *, few_step: bool = False, side: int = 0) -> LatentModel:
        """Makes a model in the released layout and size with random weights, frozen, in fp32; `side` is in pixels."""

    @abstractmethod
    def random_autoencoder(self) -> Any:
        """Makes the released autoencoder with random weights."""

    @abstractmethod
    def shaped_network(self, *, few_step: bool = False) -> BackboneNetwork:
        """Makes the released network on the meta device: shapes and no contents, frozen."""

    @abstractmethod
    def shaped_condition(self, batch: int) -> Cond:
        """Makes conditions of so many pictures, of the released shapes."""
