"""Every reader of files that strangers write, with small true files to damage for each."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from mutations import (
    OUTSIDE,
    Mutation,
    dump,
    make_value,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_png,
    mutate_safetensors,
    mutate_settings,
    mutate_yaml,
)
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from fewstep.commands.inspect import describe
from fewstep.data.infotext import read_infotext
from fewstep.data.shards.index import ShardIndex
from fewstep.data.shards.prepared import PreparedRow, PreparedShards, is_prepared, write_manifest, write_shard
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode_to_fit
from fewstep.data.sources.inspection import look_at_picture
from fewstep.data.sources.picture_files import open_picture_files
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.worlds.scenes import Scenes
from fewstep.documents import read_json
from fewstep.evaluate.protocol import claim_report_folder, rows_beside
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models import scenes_model
from fewstep.models.card import StudentCard, read_card
from fewstep.models.encoded import read_encoded
from fewstep.models.families import family_of_file
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach, detach
from fewstep.models.lora.few_step import read_few_step
from fewstep.models.lora.file import LoraFile, read_lora, write_lora
from fewstep.models.lora.pair import Pair
from fewstep.models.parts import check_tokenizer, load_tokenizer
from fewstep.models.recognising import recognise
from fewstep.models.scheduler import read_schedule
from fewstep.models.tiny_decoder import load_tiny_decoder
from fewstep.recipes.named import RECIPES, find_recipe
from fewstep.serve.client_pictures import read_parameters
from fewstep.serve.errors import RefusedError
from fewstep.serve.settings import ServerSettings
from fewstep.train import log
from fewstep.train.checkpoint import MANIFEST_FILE, Checkpoints, files_of, restore
from fewstep.train.config import LoopConfig
from fewstep.train.ledger import Ledger
from fewstep.train.loop import begin
from fewstep.train.role import Role
from fewstep.train.soundness import why_unfit
from miniatures import save_miniature
from single_files import save_single_file

CPU = torch.device("cpu")
REFUSALS = (DroppedError, RefusedError)
"""What readers say no with, beside UserError."""


@dataclass
class Corpus:
    """True files below `folder`, and what is loaded once to read others against."""

    folder: Path
    model: Any = None
    config: Any = None

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@dataclass(frozen=True)
class Reader:
    """Damages copies of true files in an empty folder, and reads them."""

    weight: int
    """How often it is drawn, beside the others."""
    read: Callable[[Corpus, Path, Random], object]


def build_corpus(folder: Path) -> Corpus:
    """Writes the true files."""
    corpus = Corpus(folder)
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(60))
    pipeline = save_miniature("sd15", tokenizer, folder / "model")
    StudentCard(name="x", teacher="scenes", guidance_scale=8.0, guidance_range=(1.0, 9.0), sampling_steps=4).write(
        pipeline
    )
    save_single_file("sd15", pipeline, folder / "single.safetensors")
    corpus.model = load_latent_model(pipeline, CPU)
    _write_loras(corpus)
    _write_run(folder / "run")
    _write_prepared(folder / "prepared")
    _write_pictures(folder / "pictures")
    _write_shards(folder / "shards")
    return corpus


def _write_loras(corpus: Corpus) -> None:
    model, generator = corpus.model, torch.Generator().manual_seed(0)
    names = [
        name for name, module in model.network.backbone.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ][:6]
    pairs = {}
    for name in names:
        weight = model.network.backbone.get_submodule(name).weight
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        pairs[f"unet.{name}"] = Pair(
            down, torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2), generator=generator), 4.0
        )
    header = {
        "fewstep.method": "LCM-LoRA",
        "fewstep.teacher": "scenes",
        "fewstep.omega": "0",
        "fewstep.steps": "4",
        "modelspec.title": "x",
    }
    write_lora(corpus / "loras", pairs, header, model.parts, model.family.lora)
    plain = safetensors.torch.load_file(corpus / "loras" / "pytorch_lora_weights.safetensors")
    dora = {**plain, **{name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(plain[name.replace("lora_A", "lora_B")].shape[0])
                        for name in plain if "lora_A" in name}}  # fmt: skip
    words = {"bundle_emb.sks.string_to_param": torch.ones(2, 16)}
    safetensors.torch.save_file({**dora, **words}, corpus / "loras" / "dora.safetensors")
    peft = {name.replace("unet.", "base_model.model."): value for name, value in plain.items()}
    safetensors.torch.save_file(peft, corpus / "loras" / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {names[0]: 2},
        "alpha_pattern": {f"^{names[1]}": 4},
        "target_modules": names,
    }
    (corpus / "loras" / "adapter_config.json").write_text(json.dumps(said))
    tiny = {f"{n}.weight": torch.zeros(2, 2, 3, 3) for n in range(1, 4)}
    safetensors.torch.save_file(tiny, corpus / "loras" / "tiny.safetensors")


def make_state() -> Any:
    return begin([Role(weights=nn.Linear(2, 3), average=nn.Linear(2, 3))], LoopConfig())


def _write_run(folder: Path) -> None:
    state = make_state()
    for step in (1, 2):
        state.roles[0].role.weights(torch.ones(1, 2)).sum().backward()
        state.roles[0].optimizer.step()
        state.step, state.counter = step, 8 * step
        Checkpoints(folder / "checkpoints").save(state.tensors(), state.numbers(), 2)
    settings = {
        "teacher": "scenes", "data": "scenes", "steps": 3, "lr": 1e-4, "batch_size": 8, "guidance_range": [2.0, 9.0], "skip": 20,
        "lora_rank": 4, "out": "x", "mix": ["a::0.5"], "made_with": {"fewstep": "1"}, "change": [],
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(settings, indent=1))
    lines = [json.dumps({"step": n, "loss": 0.1, "seconds": 1.5}) for n in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "dropped.jsonl").write_text(json.dumps({"counter": 1, "key": "a", "reason": "b"}) + "\n")
    (folder / "encoded.json").write_text(json.dumps({"made_of": {}, "sha256": "", "rows": [[0]], "reasons": [""]}))
    rows = [{"sampler": "lcm", "model": "x", "steps": 4, "fid": 1.0}]
    (folder / "results.json").write_text(json.dumps({"rows": rows, "protocol": {"n": 1, "judge": {"sha256": "a"}}}))


def _write_prepared(folder: Path) -> None:
    made_of = {"format": 1, "resolution": 8, "crop": "middle", "std": True, "seed": 0}
    rows = [PreparedRow("a", "one", (8, 8, 0, 0, 8, 8)), PreparedRow("b", "two", (8, 8, 0, 0, 8, 8), others=("more",))]
    latents = {"mean": torch.zeros(2, 4, 2, 2, dtype=torch.float16), "std": torch.ones(2, 4, 2, 2, dtype=torch.float16)}
    write_shard(folder, "0-0-0", rows, latents, made_of)
    write_manifest(folder, ["0-0-0"], made_of, {"found": 2, "used": 2})


def _picture(kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((12, 10)).convert("RGB").save(file, kind, **more)
    return file.getvalue()


def _write_pictures(folder: Path) -> None:
    from fewstep.data.infotext import build_png_info

    folder.mkdir()
    text = 'a cat\nNegative prompt: x\nSteps: 4, Sampler: LCM, CFG scale: 8, Seed: 1, Model path: scenes, Lora 1: "a, b:0.8"'
    for name, content in {
        "a.png": _picture("PNG", pnginfo=build_png_info(text)), "b.jpg": _picture("JPEG"), "c.webp": _picture("WEBP"),
        "d.png": _picture("PNG"),
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    (folder / "a.txt").write_text("a cat")
    (folder / "b.json").write_text(json.dumps({"caption": "a dog", "aesthetic": 5.0, "width": 12}))
    lines = [json.dumps({"file_name": name, "text": "words", "similarity": 0.3}) for name in ("c.webp", "d.png")]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "infotext.txt.settings").write_text(text)


def _write_shards(folder: Path) -> None:
    folder.mkdir()
    picture = _picture("PNG")
    table = pa.table(
        {
            "image": [{"bytes": picture, "path": "a.png"}] * 2,
            "text": ["one", "two"],
            "width": [12, 12],
            "punsafe": [0.1, 0.2],
        }
    )
    pq.write_table(table, folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, content in {
            "0.png": picture,
            "0.txt": b"one",
            "0.json": b'{"caption": "x", "width": 12}',
            "1.png": picture,
            "1.txt": b"two",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _copy(source: Path, target: Path, rng: Random, mutations: dict[str, Mutation], *, many: bool = False) -> Path:
    """Copies a folder, as links of the same disk, and damages one of the files that fit `mutations`, or several."""
    target.mkdir(parents=True, exist_ok=True)
    found = []
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
            continue
        mutation = next((each for end, each in mutations.items() if file.name.endswith(end)), None)
        if mutation is None:
            os.link(file, place)
        else:
            shutil.copyfile(file, place)
            found.append((place, mutation))
    for place, mutation in rng.sample(found, min(len(found), rng.choice((1, 1, 2)) if many else 1)):
        if rng.random() < 0.02:
            place.unlink()
            continue
        place.write_bytes(point_outside(mutation(rng, place.read_bytes())))
    return target


OUTSIDES: list[Path] = []
"""The folder that nothing may be read of."""


def point_outside(content: bytes) -> bytes:
    return content.replace(OUTSIDE.encode(), os.fsencode(OUTSIDES[0]))


def _take(source: Path, folder: Path, rng: Random, mutation: Mutation) -> Path:
    """Writes a damaged copy of one file."""
    target = folder / source.name
    target.write_bytes(point_outside(mutation(rng, source.read_bytes())))
    return target


def _exhaust(lines: Iterator[str]) -> None:
    from fewstep.errors import show

    for line in lines:
        show(line).encode()


def read_header(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(
        rng.choice([*(corpus / "loras").glob("*.safetensors"), corpus / "single.safetensors"]),
        folder,
        rng,
        mutate_safetensors,
    )
    read_safetensors_header(path)
    read_safetensors(path)


def read_loras(corpus: Corpus, folder: Path, rng: Random) -> None:
    names = ("pytorch_lora_weights", "lora-kohya", "dora", "adapter_model")
    source = corpus / "loras" / f"{rng.choice(names)}.safetensors"
    beside = corpus / "loras" / "adapter_config.json"
    mutation = (lambda _, data: data) if source.stem == "adapter_model" and rng.random() < 0.7 else mutate_safetensors
    path = _take(source, folder, rng, mutation)
    if source.stem == "adapter_model":
        _take(beside, folder, rng, mutate_json)
    if rng.random() < 0.3:
        _exhaust(describe(path))
    model = corpus.model
    found: LoraFile = read_lora(path, model.parts, model.family.lora)
    found.matched()
    if found.note("method") is not None:
        read_few_step(found.header, found.source, model.family)
    if rng.random() < 0.2:
        attach(model.parts, found.pairs, "x", 0.5)
        detach(model.parts, "x")


_OF_MODELS = {".json": mutate_json, ".txt": mutate_bytes}


def read_model_folder(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = _copy(corpus / "model", folder / "model", rng, _OF_MODELS, many=True)
    act = rng.random()
    if act < 0.5:
        recognise(place)
    elif act < 0.9:
        _exhaust(describe(place))
    else:
        load_latent_model(place, CPU)


def read_whole_model(corpus: Corpus, folder: Path, rng: Random) -> None:
    weights = {".safetensors": mutate_safetensors}
    load_latent_model(
        _copy(corpus / "model", folder / "model", rng, rng.choice((_OF_MODELS, _OF_MODELS, weights))), CPU
    )


def read_single_file(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(corpus / "single.safetensors", folder, rng, mutate_safetensors)
    _exhaust(describe(path))
    family_of_file(path)
    if rng.random() < 0.05:
        load_latent_model(path, CPU, str(corpus / "model"))


def read_scheduler(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(corpus / "model" / "scheduler" / "scheduler_config.json", folder, rng, mutate_json)
    read_schedule(read_json(path, "x"), "x")


def read_cards(corpus: Corpus, folder: Path, rng: Random) -> None:
    _take(corpus / "model" / "fewstep.json", folder, rng, mutate_json)
    dump_card = read_card(folder).to_json()
    json.dumps(dump_card)


def read_tokenizers(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = _copy(corpus / "model" / "tokenizer", folder / "tokenizer", rng, _OF_MODELS, many=True)
    tokenizer = load_tokenizer(CLIPTokenizer, place)
    check_tokenizer(tokenizer, corpus.model.conditioner.first.network.config, str(place))
    tokenizer(["a red star", "\U0001f600 x"], padding="max_length", truncation=True)


def read_config(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(corpus / "run" / "config.yaml", folder, rng, mutate_yaml)
    if rng.random() < 0.5:
        _exhaust(describe(folder))
    find_recipe(str(path), rng.choice(list(RECIPES)))


def seal(checkpoint: Path) -> None:
    """Writes hashes that are right."""
    files = {}
    for file in files_of(checkpoint):
        content = file.read_bytes() if file.exists() else b""
        files[file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = {"configuration": "", "counter": 16, "files": files}
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / MANIFEST_FILE).write_text(json.dumps({"content": content, "sha256": sha256}, indent=2))


def read_checkpoints(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = folder / "checkpoints"
    _copy(corpus / "run" / "checkpoints" / "step-0000001", place / "step-0000001", rng, {})
    if rng.random() < 0.2:
        _copy(
            corpus / "run" / "checkpoints" / "step-0000002", place / "step-0000002", rng, {"manifest.json": mutate_json}
        )
    else:
        _copy(corpus / "run" / "checkpoints" / "step-0000002", place / "step-0000002", rng,
              rng.choice(({"state.json": mutate_json}, {".safetensors": mutate_safetensors})))  # fmt: skip
        (place / "step-0000002" / MANIFEST_FILE).unlink()
        seal(place / "step-0000002")
    state = make_state()
    newest = Checkpoints(place).newest(lambda found: why_unfit(state, *files_of(found)))
    assert newest is not None
    restore(state, newest)
    state.roles[0].role.weights(torch.ones(1, 2)).sum().backward()
    state.roles[0].optimizer.step()
    json.dumps(state.numbers())


def read_lines_of_a_run(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = _copy(
        corpus / "run",
        folder / "run",
        rng,
        {".jsonl": mutate_lines, "encoded.json": mutate_json, "results.json": mutate_json},
        many=True,
    )
    Ledger(place, 100, samples=True)
    log._tensorboard = lambda *_: None
    log.RunLog(place, "x", 3, 2)
    read_encoded(place, {})
    list(rows_beside(place, {"n": 1, "judge": {"sha256": "a"}}))
    _take(corpus / "run" / "results.json", folder, rng, mutate_json).rename(place / "made_of.json")
    claim_report_folder(place, {"n": 1})


def read_prepared(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = _copy(corpus / "prepared", folder / "prepared", rng,
                  {"prepared.json": mutate_json, ".parquet": mutate_bytes, ".safetensors": mutate_safetensors})  # fmt: skip
    assert is_prepared(place)
    if rng.random() < 0.5:  # a table that is the one of the latents, and none that fewstep would write
        _forge_table(place, rng)
    shards = PreparedShards(place)
    shards.hash_contents()
    for index in range(min(4, len(shards))):
        shard, row = shards.locate(index)
        shards.read_row(shard, row)
        for part in ("mean", "std")[: 1 + bool(shards.made_of.get("std"))]:
            shards.read_latent(shard, row, part)


def _forge_table(place: Path, rng: Random) -> None:
    kinds = {"key": ["a", "b"], "caption": ["x", "y"], "sizes": [[8] * 6] * 2, "status": ["", ""], "row": [0, 1]}
    name = rng.choice(list(kinds))
    values = (
        [1.5, None],
        [None, None],
        [[1], [2]],
        [-1, 5],
        [2**31, 0],
        ["\x1b", "x"],
        [{"a": 1}, None],
        [[8] * 6, [1, 2]],
        [[None] * 6] * 2,
    )
    kinds[name] = rng.choice(values)  # type: ignore[assignment]
    if rng.random() < 0.2:
        del kinds[name]
    sink = io.BytesIO()
    pq.write_table(pa.table({key: pa.array(value) for key, value in kinds.items()}), sink)
    (place / "0-0-0.parquet").write_bytes(sink.getvalue())
    file = place / "0-0-0.safetensors"
    said = {
        "table_sha256": hashlib.sha256(sink.getvalue()).hexdigest(),
        "made_of": {"format": 1, "resolution": 8, "crop": "middle", "std": True, "seed": 0},
    }
    latents = safetensors.torch.load_file(corpus_latents(place))
    file.unlink(missing_ok=True)
    safetensors.torch.save_file(latents, file, {"fewstep": json.dumps(said)})


def corpus_latents(place: Path) -> Path:
    return TRUE_LATENTS[0]


TRUE_LATENTS: list[Path] = []


def _read_all(data: Path, folder: Path) -> None:
    source = open_picture_files(str(data), None, CacheSettings(folder=folder / "cache"))
    for index in range(min(6, len(source))):
        source.key(index)
        try:
            source.read(index)
        except DroppedError as dropped:
            str(dropped)
    source.report.format_report()


_OF_FOLDERS = {
    ".txt": mutate_bytes,
    ".json": mutate_json,
    ".jsonl": mutate_lines,
    ".png": mutate_png,
    ".jpg": mutate_bytes,
    ".webp": mutate_bytes,
}


def read_folder(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = _copy(corpus / "pictures", folder / "pictures", rng, _OF_FOLDERS, many=True)
    if rng.random() < 0.3:
        (place / "metadata.jsonl").unlink(missing_ok=True)
        odd = (
            "c.webp",
            "../outside",
            OUTSIDE + "/secret.png",
            "d.png",
            "",
            "a" * 3000,
            '"',
            "\x00",
            "d.png,d.png",
            "\x1b[31m",
        )
        rows = "\n".join(f"{rng.choice(odd)},{rng.choice(odd)}" for _ in range(rng.randrange(5)))
        (place / "metadata.csv").write_bytes(
            point_outside(
                mutate_bytes(rng, f"file_name,text\n{rows}".encode())
                if rng.random() < 0.5
                else f"file_name,text\n{rows}".encode()
            )
        )
    _read_all(place, folder)


def read_parquet(corpus: Corpus, folder: Path, rng: Random) -> None:
    if rng.random() < 0.4:
        _read_all(_take(corpus / "shards" / "a.parquet", folder, rng, mutate_bytes), folder)
        return
    picture = (corpus / "pictures" / "d.png").read_bytes()
    outside = os.fspath(OUTSIDES[0] / "secret.png")
    image = [{"bytes": None, "path": outside}, {"bytes": None, "path": "../OUTSIDE/secret.png"}, {"bytes": picture, "path": "x"},
             {"bytes": mutate_png(rng, picture), "path": None}, None]  # fmt: skip
    columns: dict[str, Any] = {
        "image": rng.choice(
            (
                [rng.choice(image), rng.choice(image)],
                [picture, mutate_png(rng, picture)],
                ["x", outside],
                [1, 2],
                [None, None],
            )
        ),
        "text": rng.choice(
            (
                ["a", "b"],
                [["a", "b"], []],
                [1, 2],
                [b"\xff", b"x"],
                [None, "x"],
                [{"x": 1}, None],
                [["\x1b[31m", None], ["b"]],
            )
        ),
        rng.choice(("width", "similarity", "punsafe", "status", "key", "url", "TEXT")): rng.choice(
            (
                [1, 2],
                ["x", "1e999"],
                [2**62, -1],
                [None, None],
                [float("nan"), float("inf")],
                [[1], []],
                [b"\xff", b""],
                [True, False],
            )
        ),
    }
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), folder / "a.parquet")
    _read_all(folder / "a.parquet", folder)


def read_tar(corpus: Corpus, folder: Path, rng: Random) -> None:
    if rng.random() < 0.4:
        _read_all(_take(corpus / "shards" / "a.tar", folder, rng, mutate_bytes), folder)
        return
    picture = (corpus / "pictures" / "d.png").read_bytes()
    names = (
        "0.png",
        "0.txt",
        "0.json",
        "1.jpg",
        "1.txt",
        "../2.png",
        f"{OUTSIDES[0]}/secret.png",
        "a/0.png",
        "\x1b[31m.png",
        "x" * 300 + ".png",
        ".png",
        "0",
        "0.cls",
    )
    contents = (
        picture,
        b"words",
        b"",
        b"{}",
        dump(make_value(rng)),
        b"\xff\xfe",
        mutate_png(rng, picture),
        b"a" * 10**5,
    )
    with tarfile.open(
        folder / "a.tar", "w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    ) as archive:
        for _ in range(rng.randrange(7)):
            info = tarfile.TarInfo(rng.choice(names))
            info.type = rng.choice(
                (tarfile.REGTYPE,) * 6
                + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S")
            )
            info.linkname = rng.choice(("", f"{OUTSIDES[0]}/secret.png", "../secret.png"))
            content = rng.choice(contents)
            info.size = len(content) if info.type == tarfile.REGTYPE else 0
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # more than the format has room for
                continue
    if rng.random() < 0.3:
        (folder / "a.tar").write_bytes(mutate_bytes(rng, (folder / "a.tar").read_bytes()))
    _read_all(folder / "a.tar", folder)


def read_picture(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(corpus / "pictures" / rng.choice(("a.png", "b.jpg", "c.webp", "d.png")), folder, rng, mutate_png)
    look_at_picture(str(path), path.stat().st_size)
    decode_to_fit(path.read_bytes())


def read_settings(corpus: Corpus, folder: Path, rng: Random) -> None:
    content = mutate_settings(rng, (corpus / "pictures" / "infotext.txt.settings").read_bytes())
    found = read_infotext(content.decode("utf-8", "replace"))
    read_infotext(str(found))


def read_painted(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = _take(corpus / "pictures" / "a.png", folder, rng, mutate_png)
    if rng.random() < 0.5:
        _exhaust(describe(path))
    else:
        import base64

        read_parameters(base64.b64encode(path.read_bytes()).decode(), ServerSettings())


def read_tiny_decoder(corpus: Corpus, folder: Path, rng: Random) -> None:
    load_tiny_decoder(_take(corpus / "loras" / "tiny.safetensors", folder, rng, mutate_safetensors), CPU)


def read_index(corpus: Corpus, folder: Path, rng: Random) -> None:
    ShardIndex.load(_take(corpus / "shards" / "a.parquet", folder, rng, mutate_bytes))


READERS = {
    "safetensors header": Reader(60, read_header),
    "LoRA": Reader(160, read_loras),
    "model folder": Reader(50, read_model_folder),
    "whole model": Reader(4, read_whole_model),
    "single file": Reader(25, read_single_file),
    "scheduler": Reader(60, read_scheduler),
    "card": Reader(40, read_cards),
    "tokenizer": Reader(30, read_tokenizers),
    "configuration": Reader(120, read_config),
    "sealed checkpoint": Reader(90, read_checkpoints),
    "lines of a run": Reader(50, read_lines_of_a_run),
    "prepared latents": Reader(60, read_prepared),
    "folder of pictures": Reader(60, read_folder),
    "parquet": Reader(60, read_parquet),
    "tar": Reader(60, read_tar),
    "picture": Reader(100, read_picture),
    "settings": Reader(80, read_settings),
    "painted picture": Reader(60, read_painted),
    "tiny decoder": Reader(20, read_tiny_decoder),
    "shard index": Reader(15, read_index),
}
"""By what they read."""
