"""What the families of transformers have alike: parts that are loaded, checked and put together in one way; and flows
among them."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from fewstep import assets
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.schedule import ScheduleError
from fewstep.errors import UserError
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.card import CARD_FILE, StudentCard, read_card
from fewstep.models.codec import Codec
from fewstep.models.conditioner import Conditioner
from fewstep.models.families import any_step_flow
from fewstep.models.families.original_transformers import OriginalNames, load_original, make_shaped
from fewstep.models.families.single_file import check_tensors, find_configurations
from fewstep.models.families.transformer import TransformerNetwork, refuse_engine
from fewstep.models.families.transformer_checks import PATCH
from fewstep.models.family import Family, LatentModel, LoraLayout
from fewstep.models.flow_scheduler import CLASSES, read_flow
from fewstep.models.hub import fetch_network
from fewstep.models.lora.end import read_end
from fewstep.models.lora.spelling import split_key
from fewstep.models.model_files import END_FILE, find_file, is_hub_id, read_index, read_json
from fewstep.models.model_places import find_snapshot, name_model
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import NETWORK_OPTION, Overrides
from fewstep.models.parts import check_tokenizer, keep_chat_template, load_tokenizer, load_weights, put
from fewstep.precision import Storage

logger = logging.getLogger(__name__)

_BEFORE = ("model.diffusion_model.", "diffusion_model.", "transformer.", "")
"""What stands before the transformer's tensors in single files, the first of them in one that holds more than that."""
_LARGE = torch.bfloat16
"""What large text encoders are kept in on a GPU, as they were released: in fp32 one of them would fill a card."""


def lay_out_loras(
    targets: tuple[str, ...], names: OriginalNames, time_layers: tuple[str, str], *,
    text_prefixes: Mapping[str, tuple[str, ...]], embedding_parts: Mapping[str, str], bare_parts: tuple[str, ...],
    kohya_modules: Callable[[Iterable[str]], Mapping[str, tuple[str, ...]]] | None = None,
) -> LoraLayout:  # fmt: skip
    """Says how LoRA files call a transformer and its text encoders; the arguments are those of `LoraLayout`."""
    return LoraLayout(
        part="transformer", targets=targets,
        prefixes={"transformer": ("lora_unet", "lora_transformer"), **text_prefixes},
        original_names=lambda _modules: {}, original_prefixes=("diffusion_model", "model.diffusion_model"),
        original_modules=names.list_modules, is_swapped=names.is_swapped, former_names=lambda _part, _module: (),
        embedding_parts=embedding_parts, time_layers=time_layers, bare_parts=bare_parts, portable=True,
        kohya_modules=kohya_modules,
    )  # fmt: skip


class TransformerFamily(Family):
    """A transformer between text encoders and an autoencoder."""

    overflows_in_fp16 = True
    transformer_class: Any
    encoders: ClassVar[Mapping[str, tuple[Any, Any]]]
    """The classes of each text encoder and its tokenizer, by the encoder's folder."""
    optional: tuple[str, ...] = ()
    """Text encoders that people leave out."""
    large: tuple[str, ...] = ()
    """Text encoders larger than all the rest."""
    autoencoder_class: Any = AutoencoderKL
    codec_class: type[Codec] = Codec
    patch: int = PATCH
    """Latents a token, in each direction."""
    released: ClassVar[Mapping[str, Any]]
    """The settings of the released transformer."""
    released_codec: ClassVar[Mapping[str, float]]
    """The scale and shift of the released autoencoder's latents."""

    def check_painting(self, engine: str, *, tiny_decoder: bool) -> None:
        if engine != "torch":
            raise refuse_engine(self.transformer_class.__name__)
        if tiny_decoder:
            self.codec_class.check_tiny_decoder()

    def is_few_step(self, network_config: Mapping[str, Any]) -> bool:  # noqa: ARG002  # cards alone tell
        return False

    def settings_of_file(self, keys: Iterable[str]) -> Mapping[str, Any]:
        return {
            **self.released,
            "guidance_embeds": any("guidance_in." in key or "guidance_embedder." in key for key in keys),
        }

    def recognises(self, network_config: Mapping[str, Any]) -> bool:
        known: str = self.transformer_class.__name__
        return bool(network_config.get("_class_name") == known)

    def recognises_keys(self, keys: Sequence[str], path: Path) -> bool:  # noqa: ARG002  # names say it all
        return self._find_prefix(keys) is not None

    def _find_prefix(self, keys: Sequence[str]) -> str | None:
        """Returns what stands before the transformer's tensors in a single file; None where it holds none."""
        weights = [key for key in keys if split_key(key)[1] is None]  # and no LoRA of it
        for prefix in _BEFORE:
            held = [key.removeprefix(prefix) for key in weights if key.startswith(prefix)]
            if any(key.startswith(self.keys_begin) for key in held) or self.original.is_diffusers(held):
                return prefix
        return None

    keys_begin: tuple[str, ...]
    """How tensors begin that no other family's first code has."""
    original: OriginalNames
    """What the first code calls the transformer's modules."""

    @property
    @abstractmethod
    def released_scheduler(self) -> Mapping[str, Any]:
        """Returns what the configuration of the released scheduler says of its schedule."""

    @abstractmethod
    def settle(self, config: dict[str, Any], source: str, overrides: Overrides) -> dict[str, Any]:
        """Returns a scheduler's configuration with what a person says over it. Raises UserError where it is none for
        the family's models."""

    @abstractmethod
    def make_network(self, transformer: Any, config: Mapping[str, Any], source: str, tokens: int) -> TransformerNetwork:
        """Puts a transformer on the schedule that a scheduler's configuration says for pictures of so many tokens.
        Raises UserError."""

    @abstractmethod
    def check_parts(self, source: str, parts: Mapping[str, Any]) -> None:
        """Raises UserError where the parts do not fit each other, or make a model that is told more than a prompt."""

    @abstractmethod
    def make_conditioner(self, parts: Mapping[str, Any]) -> Conditioner:
        """Makes what reads prompts of the parts, which are on their device."""

    def load_folder(
        self, folder: Path, source: str, index: Mapping[str, Any], storage: Storage, overrides: Overrides
    ) -> LatentModel:
        network = overrides.network
        part = self.lora.part
        card = read_card(folder)
        if network:  # of which the base's card knows the size of its pictures alone
            card = StudentCard(name=name_model(network), resolution=card.resolution)
        # What was made few-step here may be called whatever its maker likes.
        known = "the model" if card.method else source
        self.refuse(read_json(folder / part / "config.json", f"{source} is not a whole pipeline"), known)
        config = read_json(folder / "scheduler" / "scheduler_config.json", f"{source} has no scheduler")
        named = index.get("scheduler") or [None, None]
        config = {"_class_name": named[-1], **config} if isinstance(named, list) and named[-1] else config
        config = self.settle(config, source, overrides)  # before the weights, which take their time
        absent = [name for name in self.optional if index.get(name) in (None, [None, None])]
        end = find_file(folder, END_FILE)
        has_end = end.is_file() and not network
        if has_end:  # what embeds it begins as a copy, for which all is read first
            storage = dataclasses.replace(storage, shaped=False)
        parts = self._load_parts(folder, source, absent, storage, network)
        model = self.assemble(source, parts, config, storage.device, card=card)
        if has_end:
            layers = [parts[part].get_submodule(name) for name in self.lora.time_layers]
            model.network.load_end(read_end(end, read_safetensors(end), layers), "", 1.0)
        return model

    def _load_parts(
        self, folder: Path, source: str, absent: Sequence[str], storage: Storage, network: str
    ) -> dict[str, Any]:
        """Loads every part of a folder but its scheduler and the text encoders that are `absent`; `network` names a
        transformer that stands in for its own."""
        left_out = {"scheduler", *absent, *map(_tokenizer_of, absent)}
        places = {part: assets.find_part(folder, part) for part in self.parts if part not in left_out}
        for part, place in places.items():
            if not place.is_dir():
                raise UserError(f"{source} is not a whole pipeline: it has no folder {part}/")
        dtype = storage.dtype
        if dtype == torch.float16:
            logger.info(
                f"note: {source} overflows in fp16 and is kept in fp32; bf16 (--precision bf16) takes half of that"
            )
            dtype = torch.float32
        vae = read_json(places["vae"] / "config.json", f"{source} has no autoencoder")
        codec_dtype = torch.float32 if vae.get("force_upcast", True) else dtype
        parts: dict[str, Any] = {
            self.lora.part: self._load_network(network, places[self.lora.part], dtype, shaped=storage.shaped),
            "vae": load_weights(self.autoencoder_class, places["vae"], codec_dtype),
        }
        on_gpu = (storage.home or storage.device).type == "cuda"
        for name, (kind, tokenizer_kind) in self.encoders.items():
            if name in places:
                tokenizer = _tokenizer_of(name)
                parts[name] = load_weights(kind, places[name], _LARGE if name in self.large and on_gpu else dtype)
                parts[tokenizer] = load_tokenizer(tokenizer_kind, places[tokenizer])
                keep_chat_template(parts[tokenizer], places[tokenizer])
                told = parts[name].config
                check_tokenizer(parts[tokenizer], getattr(told, "text_config", told), str(places[tokenizer]))
        return parts

    def _load_network(self, network: str, own: Path, dtype: torch.dtype, *, shaped: bool) -> Any:
        """Loads the transformer in the folder `own`, or the one that stands in for it: a single file, a folder, or a
        repository of the Hub."""
        if not network:
            return load_weights(self.transformer_class, own, dtype, shaped=shaped)
        path = Path(network)
        if path.is_file():
            keys = list(read_safetensors_header(path).shapes)
            prefix = self._find_prefix(keys)
            if prefix is None or not self.recognises_keys(keys, path):
                raise UserError(
                    f"{path} holds no transformer of {self.title}, as its base is, by its first code's names or by "
                    "diffusers'"
                )
            config = read_json(own / "config.json", f"{own} is not a transformer")
            self.refuse(config, network)
            shaped_as = make_shaped(self.transformer_class, config, own / "config.json")
            return load_original(
                path, shaped_as, own, self.original, prefix, dtype,
                lambda wanted: check_tensors(path, self, keys, wanted),
            )  # fmt: skip
        if not path.is_dir():
            if not is_hub_id(network):
                raise UserError(f"{network} is neither a file nor a folder nor a Hub id; --transformer wants one")
            path = fetch_network(network)
        path = find_snapshot(path)
        path = path if (path / "config.json").is_file() else path / self.lora.part
        config = read_json(path / "config.json", f"{network} holds no transformer")
        if not self.recognises(config):
            raise UserError(f"{network} holds no transformer of {self.title}, as its base is")
        self.refuse(config, network)
        return load_weights(self.transformer_class, path, dtype, shaped=shaped)

    def load_single_file(self, path: Path, base_config: str, storage: Storage, overrides: Overrides) -> LatentModel:
        """Takes the transformer of a file, and all else of the folder `base_config`."""
        if not base_config:
            raise UserError(
                f"{path} holds a transformer of {self.title}; its text encoders and autoencoder are those of a "
                "diffusers folder: give that with --base-config"
            )
        if overrides.network:
            raise UserError(f"{path} is a transformer already; leave --transformer {overrides.network} out")
        folder = find_configurations(self, base_config, read_safetensors_header(path), path)
        others = dataclasses.replace(overrides, unet=str(path), base_lora=())
        model = self.load_folder(folder, str(path), read_index(folder, folder), storage, others)
        return dataclasses.replace(model, source=str(path))

    def make_codec(self, autoencoder: Any) -> Codec:
        if self.codec_class is Codec:
            for name in ("latents_mean", "latents_std"):
                if (value := autoencoder.config.get(name)) is not None:
                    raise UserError(
                        f"the autoencoder has {name} {value!r:.60}, which {self.title}'s pipelines ignore; take "
                        "it out of vae/config.json"
                    )
        flat = all(value.dim() <= 4 for value in autoencoder.parameters())  # videos' weights have an axis more
        laid = autoencoder.to(memory_format=torch.channels_last) if flat else autoencoder
        return self.codec_class(laid, patch=self.patch)

    def load_codec(self, place: Path, base_config: str, device: torch.device) -> tuple[Codec, int]:  # noqa: ARG002
        autoencoder = load_weights(self.autoencoder_class, assets.find_part(place, "vae"))
        network = read_json(place / self.lora.part / "config.json", f"{place} is not a whole pipeline")
        return self.make_codec(autoencoder.to(device)), self.read_side(network, autoencoder.config)

    def assemble(
        self, source: str, parts: Mapping[str, Any], scheduler_config: dict[str, Any], device: torch.device, *,
        card: StudentCard | None = None,
    ) -> LatentModel:  # fmt: skip
        """Checks that the parts fit each other, and puts them on `device`."""
        self.check_parts(source, parts)
        card = card or StudentCard()
        transformer, vae = parts[self.lora.part], parts["vae"]
        codec = self.make_codec(vae.to(device))
        side = card.resolution or self.read_side(transformer.config, vae.config)
        if side % codec.unit or side > self.largest_side(transformer.config, codec.multiple):
            where = f"resolution {side} in {CARD_FILE}" if card.resolution else f"pictures of {side} pixels a side"
            raise UserError(
                f"{source} has {where}, for which its transformer has no places; expected a multiple of {codec.unit}"
            )
        moved = {name: put(part, device) if isinstance(part, torch.nn.Module) else part for name, part in parts.items()}
        return LatentModel(
            source=source, family=self, codec=codec,
            network=self.make_network(moved[self.lora.part], scheduler_config, source, (side // codec.unit) ** 2),
            conditioner=self.make_conditioner(moved), scheduler_config=scheduler_config, card=card,
        )  # fmt: skip

    @abstractmethod
    def random_encoders(self) -> dict[str, Any]:
        """Makes text encoders and tokenizers of the released sizes, as far as they matter, with random weights."""

    def random_model(self, device: torch.device, *, few_step: bool = False, side: int = 0) -> LatentModel:  # noqa: ARG002
        with device:  # numbers for billions of weights are drawn in seconds there
            vae = self.random_autoencoder()
            parts = {self.lora.part: self.transformer_class(**self.released), "vae": vae, **self.random_encoders()}
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        card = StudentCard(resolution=side or None)
        return self.assemble("random weights", parts, dict(self.released_scheduler), device, card=card)

    def random_autoencoder(self) -> Any:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, sample_size=1024,
            use_quant_conv=False, use_post_quant_conv=False, **self.released_codec,
        )  # fmt: skip

    def shaped_network(self, *, few_step: bool = False) -> TransformerNetwork:  # noqa: ARG002  # a student's are these
        with torch.device("meta"):
            transformer = self.transformer_class(**self.released)
        network = self.make_network(transformer, self.released_scheduler, "the released model", tokens=1)
        return network.requires_grad_(False)

    def write_any_step_pipeline(self, network: BackboneNetwork) -> str:
        assert isinstance(network, TransformerNetwork)
        named = network.backbone.named_modules()
        embedding = next(name for name, module in named if module is network.time_embedding)
        offset, factor = network.embedded_times
        code = inspect.getsource(any_step_flow)
        for written, own in (
            (DiffusionPipeline.__name__, self.pipeline_classes[0]),
            (repr(any_step_flow.EMBEDDING).replace("'", '"'), f'"{embedding}"'),
            (f"= {any_step_flow.OFFSET}, {any_step_flow.FACTOR}", f"= {offset}, {factor}"),
        ):
            code = code.replace(written, own)
        return code


class FlowFamily(TransformerFamily):
    """A transformer that predicts the velocity of a flow."""

    is_flow = True
    network_class: Callable[[Any, Any], TransformerNetwork]
    released_shift: float
    """Shifts the times of its flow, for pictures of the released size."""

    @property
    def released_scheduler(self) -> Mapping[str, Any]:
        return {"_class_name": CLASSES[0], "shift": self.released_shift}

    def read_schedule(self, config: Mapping[str, Any], source: str, tokens: int) -> Flow:
        """Reads a scheduler's configuration, for pictures of so many tokens. Raises UserError for what is no flow."""
        return read_flow(config, source, tokens)

    def find_schedule(self, model: LatentModel, side: int) -> Flow:
        try:
            return self.read_schedule(model.scheduler_config, model.source, (side // model.codec.unit) ** 2)
        except (ScheduleError, OverflowError) as error:
            raise UserError(f"{model.source} has no schedule for pictures of {side} pixels a side") from error

    def settle(self, config: dict[str, Any], source: str, overrides: Overrides) -> dict[str, Any]:
        for option, value in overrides.stated().items():
            if option in ("base_lora", NETWORK_OPTION):
                continue
            raise UserError(
                f"{source} is a flow, for which --{option.replace('_', '-')} {value} means nothing; leave it out"
            )
        self.read_schedule(config, source, tokens=1)
        if (last := config.get("shift_terminal")) is not None:
            logger.info(
                f"note: {source} ends its steps at σ = {last} (shift_terminal), which a few-step model does not: it "
                "paints to the end"
            )
        return config

    def make_network(self, transformer: Any, config: Mapping[str, Any], source: str, tokens: int) -> TransformerNetwork:
        return self.network_class(transformer, self.read_schedule(config, source, tokens))

    def spec_prediction(self, parameterisation: str) -> str:  # noqa: ARG002
        return "flow"


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")
