"""Readers of flow transformers: folders of every family, their transformers in a file alone, LoRAs in all spellings."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from copying import copy_folder, exhaust, take_file
from corpus import Corpus
from mutations import mutate_bytes, mutate_json
from mutations_of_files import mutate_safetensors

from fewstep.commands.inspect import describe
from fewstep.models.families import recognise_file
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.few_step import check_told, find_told, read_few_step
from fewstep.models.lora.file import read_lora
from fewstep.models.recognising import recognise

CPU = torch.device("cpu")
_TEXTS = {".json": mutate_json, ".txt": mutate_bytes, ".jinja": mutate_bytes}


def read_flow_folder(corpus: Corpus, folder: Path, rng: Random) -> None:
    name = rng.choice(sorted(corpus.flows))
    place = copy_folder(corpus, f"flows/{name}", folder / name, rng, _TEXTS, many=True)
    act = rng.random()
    if act < 0.4:
        recognise(place)
    elif act < 0.8:
        exhaust(describe(place))
    else:
        model = load_latent_model(place, CPU)
        cond = model.conditioner.encode(["a red star"])
        if model.resolution == corpus.flows[name].resolution:
            z = torch.zeros(1, *model.codec.shape(model.resolution))
            with torch.no_grad():
                model.codec.decode(model.network(z, torch.tensor([500]), cond, None).z_0)


def read_flow_file(corpus: Corpus, folder: Path, rng: Random) -> None:
    name = rng.choice(sorted(corpus.flows))
    path = take_file(corpus, f"flow-files/{name}.safetensors", folder, rng, mutate_safetensors)
    recognise_file(path)
    if rng.random() < 0.3:
        exhaust(describe(path))
    else:
        load_latent_model(path, CPU, str(corpus / "flows" / name))


def read_flow_loras(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = rng.choice(corpus.flow_loras)
    taken = take_file(corpus, path, folder, rng, mutate_safetensors)
    model = corpus.flows[path.split("/")[1]]
    found = read_lora(taken, model.parts, model.family.lora)
    found.matched()
    if found.note("method") is not None:
        check_told(found)
        read_few_step(found.header, found.source, model.family)
    find_told([found], model)
