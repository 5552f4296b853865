"""Readers of models and LoRAs: headers, configurations, tokenizers, cards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random

import torch
from copying import copy_folder, exhaust, leave, take_file
from corpus import Corpus
from mutations import mutate_bytes, mutate_json
from mutations_of_files import mutate_safetensors
from transformers import CLIPTokenizer

from fewstep.commands.inspect import describe
from fewstep.documents import read_json
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.card import read_card
from fewstep.models.families import recognise_file
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach, detach
from fewstep.models.lora.few_step import check_told, find_told, read_few_step
from fewstep.models.lora.file import read_lora
from fewstep.models.parts import check_tokenizer, load_tokenizer
from fewstep.models.recognising import recognise
from fewstep.models.scheduler import read_schedule
from fewstep.models.tiny_decoder import load_tiny_decoder

CPU = torch.device("cpu")


def read_header(corpus: Corpus, folder: Path, rng: Random) -> None:
    name = rng.choice(("loras/dora", "loras/lora-kohya", "loras/adapter_model", "loras/tiny", "single"))
    path = take_file(corpus, f"{name}.safetensors", folder, rng, mutate_safetensors)
    read_safetensors_header(path)
    read_safetensors(path)


def read_loras(corpus: Corpus, folder: Path, rng: Random) -> None:
    names = ("pytorch_lora_weights", "lora-kohya", "dora", "adapter_model", "told")
    name = rng.choice(names)
    is_peft = name == "adapter_model"
    mutation = leave if is_peft and rng.random() < 0.7 else mutate_safetensors
    own = "told/pytorch_lora_weights" if name == "told" else f"loras/{name}"
    path = take_file(corpus, f"{own}.safetensors", folder, rng, mutation)
    if is_peft:
        take_file(corpus, "loras/adapter_config.json", folder, rng, mutate_json)
    if rng.random() < 0.3:
        exhaust(describe(path))
    model = corpus.model
    found = read_lora(path, model.parts, model.family.lora)
    found.matched()
    if found.note("method") is not None:
        check_told(found)
        read_few_step(found.header, found.source, model.family)
    if find_told([found], model) and rng.random() < 0.2:
        copy.deepcopy(model.network).load_end(found.end, "x", 0.5)
    if rng.random() < 0.2:
        attach(model.parts, found.pairs, "x", 0.5)
        detach(model.parts, "x")


_OF_MODELS = {".json": mutate_json, ".txt": mutate_bytes}


def read_model_folder(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = copy_folder(corpus, "model", folder / "model", rng, _OF_MODELS, many=True)
    act = rng.random()
    if act < 0.5:
        recognise(place)
    elif act < 0.9:
        exhaust(describe(place))
    else:
        load_latent_model(place, CPU)


def read_whole_model(corpus: Corpus, folder: Path, rng: Random) -> None:
    weights = {".safetensors": mutate_safetensors}
    load_latent_model(
        copy_folder(corpus, "model", folder / "model", rng, rng.choice((_OF_MODELS, _OF_MODELS, weights))), CPU
    )


def read_single_file(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = take_file(corpus, "single.safetensors", folder, rng, mutate_safetensors)
    exhaust(describe(path))
    recognise_file(path)
    if rng.random() < 0.05:
        load_latent_model(path, CPU, str(corpus / "model"))


def read_scheduler(corpus: Corpus, folder: Path, rng: Random) -> None:
    path = take_file(corpus, "model/scheduler/scheduler_config.json", folder, rng, mutate_json)
    read_schedule(read_json(path, "x"), "x")


def read_cards(corpus: Corpus, folder: Path, rng: Random) -> None:
    take_file(corpus, "model/fewstep.json", folder, rng, mutate_json)
    json.dumps(read_card(folder).to_json())


def read_tokenizers(corpus: Corpus, folder: Path, rng: Random) -> None:
    place = copy_folder(corpus, "model/tokenizer", folder / "tokenizer", rng, _OF_MODELS, many=True)
    tokenizer = load_tokenizer(CLIPTokenizer, place)
    check_tokenizer(tokenizer, corpus.model.conditioner.first.network.config, str(place))
    tokenizer(["a red star", "\U0001f600 x"], padding="max_length", truncation=True)


def read_tiny_decoder(corpus: Corpus, folder: Path, rng: Random) -> None:
    load_tiny_decoder(take_file(corpus, "loras/tiny.safetensors", folder, rng, mutate_safetensors), CPU)
