"""Readers of runs: their configuration, checkpoints, logs, reports, prepared latents and trajectories."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from copying import copy_folder, exhaust, take_file
from corpus import MADE_OF, Corpus, make_state
from mutations import mutate_bytes, mutate_json, mutate_lines, mutate_yaml
from mutations_of_files import mutate_safetensors

from fewstep.commands.inspect import describe
from fewstep.data.shards.index import ShardIndex
from fewstep.data.shards.manifest import is_prepared, read_kind
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.shards.trajectories import TrajectoryShards
from fewstep.evaluate.protocol import claim_report_folder, read_rows_beside
from fewstep.models.encoded import read_encoded
from fewstep.recipes.named import RECIPES, find_recipe
from fewstep.train import log
from fewstep.train.checkpoint import MANIFEST_FILE, Checkpoints, files_of, restore
from fewstep.train.ledger import Ledger
from fewstep.train.soundness import why_unfit
from fewstep.train.tracking import read_evaluations


def read_config(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = take_file(corpus, "run/config.yaml", folder, rng, mutate_yaml)
    if rng.random() < 0.5:
        exhaust(describe(folder))
    find_recipe(str(path), rng.choice(("distill", "distill", "distill", *RECIPES)))


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
    copy_folder(corpus, "run/checkpoints/step-0000001", place / "step-0000001", rng, {})
    if rng.random() < 0.2:
        copy_folder(corpus, "run/checkpoints/step-0000002", place / "step-0000002", rng, {"manifest.json": mutate_json})
    else:
        copy_folder(
            corpus,
            "run/checkpoints/step-0000002",
            place / "step-0000002",
            rng,
            rng.choice(({"state.json": mutate_json}, {".safetensors": mutate_safetensors})),
        )
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
    place = copy_folder(
        corpus,
        "run",
        folder / "run",
        rng,
        {
            ".jsonl": mutate_lines,
            "encoded.json": mutate_json,
            "results.json": mutate_json,
            "made_of.json": mutate_json,
        },
        many=True,
    )
    Ledger(place, 100, samples=True)
    log.RunLog(place, "x", 3, 2)
    list(read_evaluations(place))
    read_encoded(place, {})
    list(read_rows_beside(place, {"n": 1, "judge": {"sha256": "a"}}))
    claim_report_folder(place, {"n": 1})


def read_prepared(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = copy_folder(
        corpus,
        "prepared",
        folder / "prepared",
        rng,
        {"prepared.json": mutate_json, ".parquet": mutate_bytes, ".safetensors": mutate_safetensors},
    )
    assert is_prepared(place)
    if rng.random() < 0.5:  # a table that is the one of the latents, and none that fewstep would write
        _forge_table(corpus, place, rng)
    shards = PreparedShards(place)
    shards.hash_contents()
    for index in range(min(4, len(shards))):
        shard, row = shards.locate(index)
        shards.read_row(shard, row)
        for part in ("mean", "std")[: 1 + bool(shards.made_of.get("std"))]:
            shards.read_latent(shard, row, part)


def read_trajectories(corpus: Corpus, folder: Path, rng: Random) -> None:
    kinds = {"prepared.json": mutate_json, ".parquet": mutate_bytes, ".safetensors": mutate_safetensors}
    place = copy_folder(corpus, "walked", folder / "walked", rng, kinds)
    read_kind(place)
    shards = TrajectoryShards(place)
    shards.hash_contents()
    for index in range(min(4, len(shards))):
        shard, row = shards.locate(index)
        shards.read_omega(shard, row)
        for hop in range(min(2, shards.hops)):
            shards.read_state(shard, row, hop)


def _forge_table(corpus: Corpus, place: Path, rng: Random) -> None:
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
        "made_of": MADE_OF,
    }
    latents = safetensors.torch.load_file(corpus / "prepared" / "0-0-0.safetensors")
    file.unlink(missing_ok=True)
    safetensors.torch.save_file(latents, file, {"fewstep": json.dumps(said)})


def read_index(corpus: Corpus, folder: Path, rng: Random) -> None:
    ShardIndex.load(take_file(corpus, "shards/a.parquet", folder, rng, mutate_bytes))
