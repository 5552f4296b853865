"""`fewstep inspect`: describes a pipeline, a LoRA, a run folder or a painted PNG, and says what can be done with it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from fewstep import assets
from fewstep.data.infotext import read_infotext
from fewstep.data.pictures import FORMATS
from fewstep.data.shards.manifest import MANIFEST, read_kind
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.shards.store import UrlStore, find_local, find_url
from fewstep.errors import SCREEN, UserError, show
from fewstep.files import SafetensorsHeader, has_suffix, read_safetensors_header
from fewstep.models.card import LCM_LORA, read_card
from fewstep.models.families import recognise_file, recognise_folder
from fewstep.models.families.original_names import OMEGA, find_unet_prefix, is_unet_alone
from fewstep.models.families.single_file import read_statements
from fewstep.models.loading import find_files
from fewstep.models.lora.spelling import EMBEDDING, refuse_others, split_key
from fewstep.models.model_files import CHECKPOINTS, CONFIG_FILE, INDEX, TOKENIZER_CONFIG, find_file, read_json
from fewstep.models.network import KEYS
from fewstep.models.options import Overrides
from fewstep.models.vocabulary import parse_vocabulary
from fewstep.recipes.named import RECIPES
from fewstep.recipes.plain import read_config_file, to_plain
from fewstep.roots import open_regular
from fewstep.runs.advice import advise_lora, advise_painting
from fewstep.train.checkpoint import Checkpoints

_MOST_ENTRIES = 200
_WANTED = "give a model, a LoRA, a run folder, or a PNG that `fewstep generate` wrote"


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Describes a model, a LoRA, a run, a painted picture or prepared latents, and says what can be done with it."""

    path: Annotated[Path, tyro.conf.Positional] = Path(".")
    """`scenes` or `scenes-lcm` (bundled), the folder of a pipeline or a run, a LoRA's file or folder, a PNG that
    `generate` wrote, or what `prepare` wrote, in a folder or behind a URL."""


def inspect(config: Inspect) -> None:
    """Prints lines of `name: value`, nothing but names and numbers read from the headers of files."""
    url = find_url(config.path)
    here = find_local(assets.find_folder(config.path))
    for line in _describe_url(url) if url else describe(here):
        print(show(line, 4 * SCREEN))


def describe(path: Path) -> Iterator[str]:
    """Yields the lines for `path`. Raises UserError where it is of no known kind."""
    if not path.exists():
        raise UserError(f"{path} does not exist; {_WANTED}")
    if path.is_dir():
        yield from _describe_folder(find_files(path, Overrides()))
    elif has_suffix(path):
        yield from _describe_tensors(path)
    else:
        yield from _describe_picture(path)


def _describe_url(url: str) -> Iterator[str]:
    """Yields the lines for what `prepare` wrote to a URL. Raises UserError where it wrote nothing there."""
    store = UrlStore(url)
    if MANIFEST not in store:
        names = store.list_names()
        held = f", but {', '.join(names[:3])}{', …' if names[3:] else ''}" if names else ""
        raise UserError(
            f"{store} has no {MANIFEST}{held}; behind a URL, only what `fewstep prepare --out` wrote whole is "
            "inspected: fetch a model, a LoRA, a run or a picture first"
        )
    yield from _describe_prepared(url)


def _describe_tensors(path: Path) -> Iterator[str]:
    header = read_safetensors_header(path)
    if is_unet_alone(header.shapes):
        yield from _describe_unet(path, header)
        return
    yield from _describe_single_file(path, header) if _is_model(path, header) else _describe_lora(path, header)


def _is_model(path: Path, header: SafetensorsHeader) -> bool:
    """Tells a model, or a transformer alone, from a LoRA. Raises UserError for a part of a pipeline's folder."""
    if any(key.startswith(("model.", "first_stage_model.", "cond_stage_model.")) for key in header.shapes):
        return True
    if any(split_key(key)[1] for key in header.shapes):
        return False
    config = path.with_name("config.json")
    if config.is_file() and (kind := read_json(config, f"{path} has no configuration").get("_class_name")):
        raise UserError(
            f"{path} is a part of a pipeline, of class {kind!s:.60}; give the pipeline's folder (a UNet or a "
            "transformer alone goes over its base: --teacher BASE --transformer FOLDER)"
        )
    try:
        recognise_file(path)
    except UserError:
        return False
    return True


def _describe_folder(folder: Path) -> Iterator[str]:
    if (folder / INDEX).is_file():
        yield from _describe_pipeline(folder)
    elif (folder / CONFIG_FILE).is_file():
        yield from _describe_run(folder)
    elif (folder / MANIFEST).is_file():
        yield from _describe_prepared(folder)
    elif files := sorted(folder.glob("*.safetensors")):
        find_file(folder, files[-1].name)  # refuses a link out of it
        if files[1:]:
            others = ", ".join(file.name for file in files[:-1][:_MOST_ENTRIES])
            yield f"file: {files[-1].name}, one of {len(files)} in the folder; name another to see it: {others}"
        yield from _describe_tensors(files[-1])
    else:
        raise UserError(
            f"{folder} is neither a pipeline (no {INDEX}) nor a run folder (no {CONFIG_FILE}), and holds no "
            f".safetensors; {_WANTED}"
        )


def _describe_pipeline(folder: Path) -> Iterator[str]:
    otherwise = f"{folder} is not a whole pipeline"
    index, scheduler = (read_json(folder / name, otherwise) for name in (INDEX, "scheduler/scheduler_config.json"))
    try:
        family = recognise_folder(folder, index, str(folder))
    except UserError as error:
        yield f"pipeline: {index.get('_class_name')}"
        yield f"family: none that fewstep knows ({error})"
        return
    network = read_json(folder / family.lora.part / "config.json", otherwise)
    codec = read_json(assets.find_part(folder, "vae") / "config.json", otherwise)
    card = read_card(folder)
    side = card.resolution or family.read_side(network, codec)
    yield f"pipeline: {index.get('_class_name')}"
    yield f"family: {family.describe(network)}"
    yield f"parameterisation: {family.predicts(scheduler)}"
    yield f"resolution: {side}×{side}"
    for part in family.parts:
        place = assets.find_part(folder, part)
        files = sorted(place.glob("*.safetensors"))
        for file in files:
            find_file(place, file.name)  # refuses links out; what a link of the Hub's cache leads to has no such name
        if counts := [read_safetensors_header(file).parameters for file in files]:
            yield f"{part}: {sum(counts):,} parameters"
    tokenizer = assets.find_part(folder, "tokenizer") / TOKENIZER_CONFIG
    if tokenizer.is_file() and (vocabulary := parse_vocabulary(read_json(tokenizer, otherwise))):
        yield f"words that it knows: {', '.join(vocabulary.words)}"
        yield f"prompts as it learnt them: {'; '.join(vocabulary.examples)}"
    yield from _list_entries(
        _name_for_readers({name: value for name, value in card.to_json().items() if name != "resolution"})
    )
    here = shlex.quote(assets.find_name(folder))
    is_few_step = family.is_few_step(network) or family.records_student(card) or card.method == LCM_LORA
    if is_few_step or scheduler.get("_class_name") == "LCMScheduler":
        yield f'paint with it: fewstep generate --model {here} --prompt "…"'
        return
    try:
        family.refuse_index(index, str(folder))
        family.refuse(network, str(folder))
    except UserError as error:
        yield f"not read: {error}"
    else:
        yield f"make it few-step: fewstep distill --teacher {here} --data PICTURES --out RUN"


def _describe_single_file(path: Path, header: SafetensorsHeader) -> Iterator[str]:
    family = recognise_file(path)
    alone = family.lora.part == "transformer"
    yield f"single-file checkpoint: {family.title}{', the transformer alone' if alone else ''}"
    yield f"parameters: {header.parameters:,} in {len(header.shapes)} tensors"
    there = "those of --base-config" if alone else "those of --base-config, or of the Hub's configuration"
    said = read_statements(header)
    if said:
        yield f"the file says: {', '.join(f'{name} {value}' for name, value in said.items())}"
    yield f"{'what else a schedule has' if said else 'parameterisation'}, and resolution: not in the file; {there}"
    try:
        family.refuse(family.settings_of_file(header.shapes), str(path))
    except UserError as error:
        yield f"not read: {error}"
        return
    base = " --base-config BASE" if alone else ""
    yield f"make it few-step: fewstep distill --teacher {shlex.quote(str(path))}{base} --data PICTURES --out RUN"
    if alone:
        yield f"  BASE: a diffusers folder of {family.title}, for its text encoders and autoencoder"


def _describe_unet(path: Path, header: SafetensorsHeader) -> Iterator[str]:
    is_few_step = f"{find_unet_prefix(header.shapes)}{OMEGA}" in header.shapes
    yield f"UNet alone{', few-step: it is told its guidance' if is_few_step else ''}"
    yield f"parameters: {header.parameters:,} in {len(header.shapes)} tensors"
    if said := read_statements(header):
        yield f"the file says: {', '.join(f'{name} {value}' for name, value in said.items())}"
    here = shlex.quote(str(path))
    if is_few_step:
        yield f'paint with it: fewstep generate --model BASE --unet {here} --prompt "…"'
    else:
        yield f"make it few-step: fewstep distill --teacher BASE --unet {here} --data PICTURES --out RUN"
    yield "  BASE: the model whose text encoders and autoencoder go with it"


def _describe_prepared(place: str | Path) -> Iterator[str]:
    shards = PreparedShards(place)
    yield f"prepared: {len(shards):,} {read_kind(place)} in {len(shards.names)} shards"
    yield f"learn from it: fewstep distill --data {shlex.quote(str(shards.place))} --out RUN"
    yield from _list_entries([*shards.made_of.items()])


_COMMAND_BY_SETTING = {"teacher": "distill", "skip": "finetune", "lora_rank": "train-lora"}
"""The command that wrote a run, by the first of these settings that the run has."""


def _describe_run(folder: Path) -> Iterator[str]:
    settings = read_config_file(folder / CONFIG_FILE)
    yield f"run: {folder.name}"
    checkpoints = Checkpoints(folder / CHECKPOINTS).list()
    done = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    yield f"done: {done} of {settings.get('steps', '?')} updates"
    if (folder / "model").is_dir():
        yield from advise_painting(folder / "model")
    elif checkpoints:
        yield f'paint with its newest checkpoint: fewstep generate --model {shlex.quote(str(folder))} --prompt "…"'
    command = next((command for name, command in _COMMAND_BY_SETTING.items() if name in settings), None)
    if command and not (folder / "model").is_dir():
        yield f"go on: fewstep {command} {shlex.quote(str(folder / CONFIG_FILE))} --out {shlex.quote(str(folder))}"
    if command:
        yield f"repeat it: fewstep {command} {shlex.quote(str(folder / CONFIG_FILE))} --out ANOTHER"
        yield from _compare_settings(settings, command)
    else:
        yield from _list_entries(_name_for_readers(settings))


def _compare_settings(settings: Mapping[str, object], command: str) -> Iterator[str]:
    """Yields a line for each setting that the command's nearest recipe has otherwise."""
    others: dict[str, list[tuple[str, object]]] = {}
    for name, make in RECIPES[command].items():
        recipe = to_plain(make())
        others[name] = [each for each in settings.items() if each[0] not in recipe or recipe[each[0]] != each[1]]
    nearest = min(others, key=lambda name: len(others[name]))
    alike = len(settings) - len(others[nearest])
    yield f"settings: as the recipe {nearest} has them, {alike} of {len(settings)}, but for"
    yield from _list_entries(_name_for_readers(dict(others[nearest])))
    yield f"all of them: {CONFIG_FILE}"


_NAMES = {"steps": "updates", "sampling_steps": "steps when none are asked for"}
"""What a person reads for the names that files have."""


def _name_for_readers(entries: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(_NAMES.get(name, name), value) for name, value in entries.items()]


def _list_entries(entries: Sequence[tuple[str, object]]) -> Iterator[str]:
    """Yields a line for each entry that a file holds, as far as a person would read them."""
    for name, value in entries[:_MOST_ENTRIES]:
        yield f"{name}: {' '.join(str(value).split())}"
    if (more := len(entries) - _MOST_ENTRIES) > 0:
        yield f"and {more:,} entries more"


def _describe_lora(path: Path, header: SafetensorsHeader) -> Iterator[str]:
    halves = {key: split_key(key)[1] for key in header.shapes}
    down = {key: header.shapes[key] for key, half in halves.items() if half == "down" and header.shapes[key]}
    if not down:
        refuse_others(path, header.shapes)
        raise UserError(f"{path} holds no LoRA: no key of its {len(header.shapes)} has lora_A, lora_down or lora.down")
    kind = "kohya" if any(key.startswith("lora_") for key in down) else "diffusers or peft"
    kind = "XLabs" if any("_blocks." in key and ".processor." in key for key in down) else kind
    ranks = sorted({shape[0] for shape in down.values()})
    yield f"{'DoRA' if {'magnitude', 'dora_scale'} & {*halves.values()} else 'LoRA'}: {kind} keys"
    yield f"modules: {len(down)}"
    yield f"rank: {', '.join(map(str, ranks))}"
    yield f"parameters: {header.parameters:,}"
    if end := sum(math.prod(shape) for key, shape in header.shapes.items() if key.startswith(KEYS)):
        yield f"tells its base where to land: {end:,} of the parameters; paints with fewstep alone"
    if words := {key.removeprefix(EMBEDDING).split(".")[0] for key in header.shapes if key.startswith(EMBEDDING)}:
        yield f"words for prompts: {', '.join(' '.join(word.split()) for word in sorted(words))}"
    said = (each for each in sorted(header.metadata.items()) if each[0].startswith(("fewstep.", "modelspec.")))
    yield from _list_entries([*said])
    yield from advise_lora(path, header.metadata)


def _describe_picture(path: Path) -> Iterator[str]:
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            text = image.info.get("parameters")
            yield f"picture: {image.width}×{image.height} {image.format}"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged data
        raise UserError(f"{path} is neither a picture nor a .safetensors file; {_WANTED}") from error
    if not isinstance(text, str):
        raise UserError(f"{path} does not say what painted it (no `parameters` in it)")
    infotext = read_infotext(text)
    yield f"prompt: {infotext.prompt}"
    if infotext.negative_prompt:
        yield f"negative prompt: {infotext.negative_prompt}"
    yield from _list_entries([(name.lower(), value) for name, value in infotext.settings.items()])
    model = infotext.settings.get("Model path", "MODEL")
    command = ["fewstep", "generate", *_spell("--model", model), *_spell("--prompt", infotext.prompt)]
    options = {
        "Steps": "--steps", "Seed": "--seed", "CFG scale": "--guidance-scale", "Init image": "--init-image",
        "Denoising strength": "--strength", "Model config": "--base-config",
        "Precision": "--precision", "Mask": "--mask", "Mask blur": "--mask-blur", "Tiny decoder": "--tiny-decoder",
        "Engine": "--engine", "Model prediction type": "--prediction-type", "Model unet": "--unet",
    }  # fmt: skip
    for name, option in options.items():
        command += _spell(option, infotext.settings[name]) if name in infotext.settings else []
    if "Model zero snr" in infotext.settings:
        command += ["--zero-snr" if infotext.settings["Model zero snr"] == "True" else "--no-zero-snr"]
    command += _spell("--negative-prompt", infotext.negative_prompt) if infotext.negative_prompt else []
    for name, value in infotext.settings.items():
        command += _spell("--lora", value) if re.fullmatch(r"Lora \d+", name) else []
    yield f"repaint it: {shlex.join(command)}"


def _spell(option: str, value: str) -> list[str]:
    """Returns an option and its value, in one word where the value looks like an option itself."""
    return [f"{option}={value}"] if value.startswith("-") else [option, value]
