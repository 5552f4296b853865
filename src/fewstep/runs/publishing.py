"""What is sent of a run or a model to the Hub: its files, a card with pictures, and no path of this machine."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import safetensors.torch
import yaml
from PIL import Image

from fewstep.data.infotext import read_infotext
from fewstep.documents import parse_yaml, read_json
from fewstep.errors import UserError, show
from fewstep.files import DRAFT_MARK, LOCK_FILE, read_safetensors, read_safetensors_header
from fewstep.models.card import StudentCard, read_card, split_scale
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.model_files import INDEX, find_run, is_hub_id
from fewstep.models.model_places import find_exported
from fewstep.models.publishing import check_account, send
from fewstep.models.readme import name_base
from fewstep.parallel.world import current_world
from fewstep.recipes.pictures import TrainingConfig, check_license
from fewstep.roots import OutsideError, Root
from fewstep.train.tracking import find_samples

README = "README.md"
SAMPLES = "images/samples.png"
_MOST_TEXT = 2**20
"""Counts bytes: vocabularies are longer, and configurations shorter."""
Files = dict[str, Path | bytes]
"""Gives what is sent by its name in the repository."""
Config = TypeVar("Config", bound=TrainingConfig)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Says what is published, and what its card is told."""

    source: Path
    repo: str
    license: str = ""
    base_model: str = ""
    instance_prompt: str = ""
    pictures: Sequence[Path] = ()


def gather(asked: Publication) -> Files:
    """Returns all that is to be sent. Raises UserError where there is no model, or a file leads out of its folder."""
    folder = Path(find_exported(asked.source))
    if not ((folder / INDEX).is_file() or (folder / DIFFUSERS_FILE).is_file()):
        if (run := find_run(asked.source)) and not run.ended:
            raise UserError(f"nothing was sent: {run.describe()}")
        raise UserError(f"{asked.source} holds no model; give a run that has ended, or the folder of a model or a LoRA")
    files: Files = {path.relative_to(folder).as_posix(): path for path in _list_files(folder)}
    header = read_safetensors_header(folder / DIFFUSERS_FILE).metadata if DIFFUSERS_FILE in files else {}
    card = read_card(folder)
    made_of = card.teacher or header.get("fewstep.teacher", "")
    if asked.base_model and (
        not is_hub_id(asked.base_model) or (asked.base_model != made_of and _is_local(asked.base_model, folder))
    ):
        raise UserError(f"base_model is {asked.base_model}, a path here; give the base's repository, as OWNER/NAME")
    named = [value for value in _list_named(card, header, files) if _is_local(value, folder)]
    hidden = _hide_paths(named, {made_of: asked.base_model})
    base = asked.base_model or ("" if made_of in hidden else made_of)
    for name, path in list(files.items()):
        if name.endswith(".safetensors"):
            read_safetensors_header(folder / name)  # refuses one that is damaged
        if name.endswith(".safetensors") and "/" not in name and (changed := _restate(folder / name, hidden, asked)):
            files[name] = changed
        elif _is_text(name, path) and isinstance(path, Path):
            held = path.read_bytes()
            words = _replace(held.decode(errors="surrogateescape"), hidden, name)
            if asked.base_model:
                words = _name_base(words, name, made_of, asked.base_model)
            changed = words.encode(errors="surrogateescape")
            files[name] = path if changed == held else changed
    pictures = {f"images/{i + 1}.png": _read_painted(file) for i, file in enumerate(asked.pictures)}
    files |= {name: content for name, (content, _) in pictures.items()}
    samples = find_samples(asked.source) if folder != asked.source else []
    if samples:
        files[SAMPLES] = samples[-1][1]
    text = files.get(README, b"")
    said = (text if isinstance(text, bytes) else text.read_bytes()).decode(errors="replace")
    metadata = _describe(asked, card, base if is_hub_id(base) else "", is_lora=bool(header))
    metadata["widget"] = [{"text": prompt, "output": {"url": name}} for name, (_, prompt) in pictures.items()]
    files[README] = _write_card(said, metadata, asked, folder, samples=bool(samples)).encode()
    return dict(sorted(files.items()))


def _list_files(folder: Path) -> Iterator[Path]:
    root = Root(str(folder))
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or DRAFT_MARK in path.name or path.name == LOCK_FILE or not path.is_file():
            continue
        try:
            root.resolve(str(below))
        except OutsideError as error:
            raise UserError(f"{path} leads out of the folder that is published; put the file itself there") from error
        yield path


def _is_text(name: str, path: Path | bytes) -> bool:
    """Says whether a file is a card or a configuration, in which paths of this machine may stand."""
    return name == README or (name.endswith(".json") and isinstance(path, Path) and path.stat().st_size < _MOST_TEXT)


def _list_named(card: StudentCard, header: Mapping[str, str], files: Files) -> list[str]:
    """Returns what a card, a header and the configurations of diffusers name that lies on this machine."""
    paths = [path for name, path in files.items() if name.endswith("config.json") and _is_text(name, path)]
    values = [str(_read_config(path).get("_name_or_path", "")) for path in paths if isinstance(path, Path)]
    values += [*header.values(), *(value for value in vars(card).values() if isinstance(value, str))]
    values += (
        split_scale(each)[0] for each in (*(card.base_lora or ()), *header.get("fewstep.combined", "").split(", "))
    )
    return values


def _read_config(file: Path) -> dict[str, Any]:
    return read_json(file, f"{file.parent} cannot be published")


def _is_local(value: str, folder: Path) -> bool:
    """Tells whether a name is a path of this machine, seen from here or from wherever the run was started."""
    begins = value.startswith(("/", "~", "./", "../")) or PureWindowsPath(value).drive != ""
    short = "\n" not in value and 1 < len(value) < 4096
    starts = (Path(), *folder.resolve().parents)
    return short and (begins or ("/" in value and any(os.path.exists(start / value) for start in starts)))


def _hide_paths(local: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns what stands in the place of each path of this machine: what is given, or its last part."""
    last = {name: given.get(name) or name.replace("\\", "/").rstrip("/").rpartition("/")[2] for name in local}
    last |= {name[2:]: put for name, put in last.items() if name.startswith("./") and "/" in name[2:]}
    return dict(sorted(last.items(), key=lambda pair: -len(pair[0])))  # a path before the folder that it is in


def _replace(text: str, hidden: Mapping[str, str], name: str) -> str:
    for path, put in hidden.items():
        spelt = json.dumps(path)[1:-1] if name.endswith(".json") else path
        whole = rf"(?<![\w./-]){re.escape(spelt)}(?![\w.-])" if path[0] not in "/~." else re.escape(spelt)
        text = re.sub(whole, put.replace("\\", r"\\"), text)
    return text


def _name_base(text: str, name: str, base: str, given: str) -> str:
    """Returns a card, or a workflow for ComfyUI, that names the base that is given, also where the other is no path."""
    if name == README:
        return name_base(text, base, given)
    text = text.replace(f"Choose the base here: {Path(base).name},", f"Choose the base here: {Path(given).name},")
    return text.replace(f'"teacher": {json.dumps(base)}', f'"teacher": {json.dumps(given)}')


def _restate(file: Path, hidden: Mapping[str, str], asked: Publication) -> bytes | None:
    """Returns a LoRA's file with other words in its header, and the same tensors; None where none is to change."""
    said = read_safetensors_header(file).metadata
    put = {name: _replace(value, hidden, name) for name, value in said.items()}
    if asked.base_model and "fewstep.teacher" in put:
        put["fewstep.teacher"] = asked.base_model
    return None if put == said else safetensors.torch.save(read_safetensors(file), put)


def _read_painted(file: Path) -> tuple[bytes, str]:
    """Returns a picture without what stands beside its pixels, and its prompt."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            prompt = read_infotext(str(image.info.get("parameters", ""))).prompt.strip()
            box = io.BytesIO()
            image.convert("RGB").save(box, format="png", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as a PNG ({' '.join(str(error).split())[:80]})") from error
    if not prompt:
        raise UserError(f"{file} does not say its prompt; give a PNG that `fewstep generate` wrote")
    return box.getvalue(), prompt


def _describe(asked: Publication, card: StudentCard, base: str, *, is_lora: bool) -> dict[str, Any]:
    """Returns what the Hub's widget and search read, and by which steps and scale its widget paints."""
    few_step = card.guidance_scale is not None
    scale = (1.0 if card.stock_scale is None else card.stock_scale) if is_lora else card.guidance_scale
    asks = {"num_inference_steps": card.sampling_steps or 4, "guidance_scale": scale}
    return {
        **({"license": asked.license} if asked.license else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"base_model": base, "base_model_relation": "adapter" if is_lora else "finetune"} if base else {}),
        "tags": ["text-to-image", "diffusers", *(["lora"] if is_lora else []), "fewstep"],
        **({"instance_prompt": asked.instance_prompt} if asked.instance_prompt else {}),
        **({"inference": {"parameters": asks}} if few_step else {}),
    }


def _write_card(text: str, metadata: dict[str, Any], asked: Publication, folder: Path, *, samples: bool) -> str:
    """Returns the card that lies beside the model, told of the Hub: what its head had besides is kept."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    try:
        held, body = (parse_yaml(found[1]), found[2]) if found else ({}, text)
    except ValueError as error:
        raise UserError(f"the head of {README} beside the model cannot be read ({error}); mend or remove it") from error
    held = held if isinstance(held, dict) else {}
    bases = held.get("base_model") or []
    bases = bases if isinstance(bases, list) else [bases]
    if any(not is_hub_id(str(each)) or _is_local(str(each), folder) for each in bases):
        held = {name: value for name, value in held.items() if not name.startswith("base_model")}
    tags = [*metadata["tags"], *(map(str, held.get("tags") or ()))]
    head = {**held, **metadata, "tags": list(dict.fromkeys(tags))}
    head = {name: value for name, value in head.items() if value or value == 0}
    body = body.replace("this folder", asked.repo).strip() or f"# {asked.repo.partition('/')[2]}\n\nMade with fewstep."
    shown = [f"![{each['text']}]({each['output']['url']})" for each in metadata["widget"]]
    shown += [f"![samples along the training]({SAMPLES})"] if samples else []
    pictures = "\n\n## Pictures\n\n" + "\n\n".join(shown) if shown else ""
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{body}{pictures}\n"


def list_files(repo: str, files: Mapping[str, Path | bytes], *, public: bool) -> Iterator[str]:
    """Yields what is sent where, a line a file."""
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in files.items()}
    seen, total = "open to all" if public else "private", sum(sizes.values()) / 1e6
    yield f"to {repo} ({seen}): {len(files)} files, {total:.1f} MB"
    yield from (f"  {size:>13,}  {name}" for name, size in sizes.items())


def settle_license(given: str) -> str:
    """Returns the license that is given, or what a terminal answers. Raises UserError where there is none to ask."""
    if given:
        return check_license(given)
    if not sys.stdin.isatty() or current_world().size > 1:
        raise UserError("nothing is published without a license; give --license, as apache-2.0 or openrail++")
    print("Under which license is it published? The base's own may bind you.", file=sys.stderr)
    print("The Hub's name, as apache-2.0, openrail++ or other: ", end="", file=sys.stderr, flush=True)
    return check_license(sys.stdin.readline().strip())


def prepare_push(config: Config) -> Config:
    """Settles before a training what it is published under, and that it can be. Raises UserError."""
    if not config.push_to_hub or not current_world().main:
        return config
    config = dataclasses.replace(config, license=settle_license(config.license))
    check_account(config.push_to_hub)
    return config


def push(config: TrainingConfig, out: Path) -> None:
    """Sends the model of the run in `out`, which has ended. Raises UserError, which says how to do it later."""
    if not current_world().main:
        return
    asked = Publication(source=out, repo=config.push_to_hub, license=config.license)
    try:
        files = gather(asked)
        print(*map(show, list_files(asked.repo, files, public=config.public)), sep="\n", flush=True)
        address = send(asked.repo, files, public=config.public, message=f"fewstep: {out.resolve().name}")
    except UserError as error:
        place = shlex.quote(str(out))
        later = f"fewstep publish {place} {asked.repo} --license {config.license}{' --public' * config.public}"
        raise UserError(f"the model is whole in {out}, and {error}; later: {later}") from error
    print(f"published: {address}", flush=True)
