"""Small true files of every kind that strangers write, to damage copies of."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import nn

from fewstep.data.infotext import build_png_info
from fewstep.data.shards.prepared import PreparedRow, write_manifest, write_shard
from fewstep.data.shards.store import FolderStore
from fewstep.data.worlds.scenes import Scenes
from fewstep.models import scenes_model
from fewstep.models.card import StudentCard
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import write_lora
from fewstep.models.lora.pair import Pair
from fewstep.models.network import EndEmbedding
from fewstep.recipes.named import find_recipe
from fewstep.recipes.plain import to_plain
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.config import LoopConfig
from fewstep.train.loop import begin
from fewstep.train.role import Role
from flow_miniatures import TRANSFORMERS, to_original
from miniatures import save_miniature
from single_files import save_single_file

MADE_OF = {"format": 1, "resolution": 8, "crop": "middle", "std": True, "seed": 0}
"""What prepared latents say of themselves."""


@dataclass
class Corpus:
    """True files below `folder`, and the model that LoRAs are read against."""

    folder: Path
    outside: Path
    """A folder that nothing may be read of."""
    model: Any = None
    flows: dict[str, Any] = field(default_factory=dict)
    """A model of every flow family."""
    flow_loras: list[str] = field(default_factory=list)
    """Names of LoRAs for them."""

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def build_corpus(folder: Path, outside: Path) -> Corpus:
    """Writes the true files."""
    corpus = Corpus(folder, outside)
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(60))
    pipeline = save_miniature("sd15", tokenizer, folder / "model")
    StudentCard(name="x", teacher="scenes", guidance_scale=8.0, guidance_range=(1.0, 9.0), sampling_steps=4).write(
        pipeline
    )
    save_single_file("sd15", pipeline, folder / "single.safetensors")
    corpus.model = load_latent_model(pipeline, torch.device("cpu"))
    _write_loras(corpus)
    _write_flows(corpus, tokenizer)
    _write_run(folder / "run")
    _write_prepared(folder / "prepared")
    _write_trajectories(folder / "walked")
    _write_pictures(folder / "pictures")
    _write_shards(folder / "shards")
    return corpus


def _write_flows(corpus: Corpus, tokenizer: Any) -> None:
    (corpus / "flow-files").mkdir()
    for name, save in TRANSFORMERS.items():
        place = save(tokenizer, corpus / "flows" / name)
        StudentCard(resolution=64).write(place)
        model = corpus.flows[name] = load_latent_model(place, torch.device("cpu"))
        safetensors.torch.save_file(to_original(model), corpus / "flow-files" / f"{name}.safetensors")
        backbone, layout = model.network.backbone, model.family.lora
        ends = tuple(f".{target}" for target in layout.targets)
        pairs = {
            f"{layout.part}.{module}": Pair(torch.ones(2, layer.in_features), torch.ones(layer.out_features, 2), 4.0)
            for module, layer in backbone.named_modules() if isinstance(layer, nn.Linear) and module.endswith(ends)
        }  # fmt: skip
        header = {"fewstep.method": "LCM-LoRA", "fewstep.omega": "3", "fewstep.shift": "3", "fewstep.steps": "4"}
        folder = corpus / "flow-loras" / name
        write_lora(folder, pairs, header, model.parts, layout)
        end = EndEmbedding(*(backbone.get_submodule(layer) for layer in layout.time_layers)).state_dict()
        told = header | {"fewstep.consistency": "any-step", "fewstep.phases": "1,2,4,8"}
        write_lora(folder / "told", pairs, told, model.parts, layout, end)
        plain = safetensors.torch.load_file(folder / "pytorch_lora_weights.safetensors")
        original = {}
        for theirs, ours in layout.original_modules(name for name, _ in backbone.named_modules()).items():
            halves = [f"{layout.part}.{module}.lora_B.weight" for module in ours]
            if all(half in plain for half in halves):
                original[f"diffusion_model.{theirs}.lora_A.weight"] = plain[
                    halves[0].replace("lora_B", "lora_A")
                ].clone()
                original[f"diffusion_model.{theirs}.lora_B.weight"] = torch.cat([plain[half] for half in halves])
        safetensors.torch.save_file(original, folder / "original.safetensors")
        corpus.flow_loras += [
            file.relative_to(corpus.folder).as_posix() for file in sorted(folder.rglob("*.safetensors"))
        ]


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
    told = {**header, "fewstep.consistency": "any-step", "fewstep.phases": "1,2,4,8"}
    time = model.network.backbone.time_embedding
    end = EndEmbedding(time.linear_1, time.linear_2).state_dict()
    write_lora(corpus / "told", pairs, told, model.parts, model.family.lora, end)
    plain = safetensors.torch.load_file(corpus / "loras" / "pytorch_lora_weights.safetensors")
    dora = {
        **plain,
        **{
            name.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(
                plain[name.replace("lora_A", "lora_B")].shape[0]
            )
            for name in plain
            if "lora_A" in name
        },
    }
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
    decoder = AutoencoderTiny(latent_channels=4).decoder.layers.half()
    tiny = {f"decoder.layers.{name}": value for name, value in decoder.state_dict().items()}
    safetensors.torch.save_file(tiny, corpus / "loras" / "tiny.safetensors")


def make_state() -> Any:
    return begin([Role(weights=nn.Linear(2, 3), average=nn.Linear(2, 3))], LoopConfig())


def _write_run(folder: Path) -> None:
    state = make_state()
    (folder / "checkpoints").mkdir(parents=True)
    for step in (1, 2):
        state.roles[0].role.weights(torch.ones(1, 2)).sum().backward()
        state.roles[0].optimizer.step()
        state.step, state.counter = step, 8 * step
        Checkpoints(folder / "checkpoints").save(state.tensors(), state.numbers(), 2)
    settings = {**to_plain(find_recipe("scenes")), "made_with": {"fewstep": "1"}}
    (folder / "config.yaml").write_text(json.dumps(settings, indent=1))
    lines = [json.dumps({"step": n, "loss": 0.1, "seconds": 1.5}) for n in range(3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "dropped.jsonl").write_text(json.dumps({"counter": 1, "key": "a", "reason": "b"}) + "\n")
    safetensors.torch.save_file({"mean": torch.ones(1), "std": torch.ones(1)}, folder / "encoded.safetensors")
    sha256 = hashlib.sha256((folder / "encoded.safetensors").read_bytes()).hexdigest()
    (folder / "encoded.json").write_text(json.dumps({"made_of": {}, "sha256": sha256, "rows": [[0]], "reasons": [""]}))
    rows = [{"sampler": "lcm", "model": "x", "steps": 4, "fid": 1.0}]
    (folder / "made_of.json").write_text(json.dumps({"n": 1}))
    (folder / "results.json").write_text(json.dumps({"rows": rows, "protocol": {"n": 1, "judge": {"sha256": "a"}}}))


def _write_prepared(folder: Path) -> None:
    rows = [PreparedRow("a", "one", (8, 8, 0, 0, 8, 8)), PreparedRow("b", "two", (8, 8, 0, 0, 8, 8), others=("more",))]
    latents = {"mean": torch.zeros(2, 4, 2, 2, dtype=torch.float16), "std": torch.ones(2, 4, 2, 2, dtype=torch.float16)}
    write_shard(FolderStore(folder), "0-0-0", rows, latents, MADE_OF)
    write_manifest(FolderStore(folder), ["0-0-0"], MADE_OF, {"found": 2, "used": 2})


def _write_trajectories(folder: Path) -> None:
    rows = [PreparedRow(name, "one", (8, 8, 0, 0, 8, 8)) for name in "ab"]
    made_of = {**MADE_OF, "kind": "trajectories", "stops": [999, 499, 0], "latent_shape": [4, 2, 2]}
    walked = {"states": torch.zeros(2, 3, 4, 2, 2, dtype=torch.float16), "omega": torch.ones(2)}
    write_shard(FolderStore(folder), "0-0-trajectories", rows, walked, made_of)
    write_manifest(FolderStore(folder), ["0-0-trajectories"], made_of, {"found": 2, "used": 2})


def draw_picture(kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((12, 10)).convert("RGB").save(file, kind, **more)
    return file.getvalue()


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    text = 'a cat\nNegative prompt: x\nSteps: 4, Sampler: LCM, Seed: 1, Model path: scenes, Lora 1: "a, b:0.8"'
    for name, content in {
        "a.png": draw_picture("PNG", pnginfo=build_png_info(text)),
        "b.jpg": draw_picture("JPEG"),
        "c.webp": draw_picture("WEBP"),
        "d.png": draw_picture("PNG"),
    }.items():
        (folder / name).write_bytes(content)
    (folder / "a.txt").write_text("a cat")
    (folder / "b.json").write_text(json.dumps({"caption": "a dog", "aesthetic": 5.0, "width": 12}))
    lines = [json.dumps({"file_name": name, "text": "words", "similarity": 0.3}) for name in ("c.webp", "d.png")]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "infotext.txt.settings").write_text(text)


def _write_shards(folder: Path) -> None:
    folder.mkdir()
    picture = draw_picture("PNG")
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
