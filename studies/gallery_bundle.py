"""What the package ships of the gallery: teacher and reader of a run, then the LCM-LoRA of that teacher.

python studies/gallery_bundle.py --run runs/gallery
fewstep distill --recipe gallery-lora
python studies/gallery_bundle.py --lora runs/gallery-lcm
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import tyro

from fewstep import assets
from fewstep.evaluate.gallery_reader import load_gallery_reader
from fewstep.evaluate.reader import save_reader
from fewstep.files import read_safetensors, read_safetensors_header
from fewstep.models.lora.file import DIFFUSERS_FILE


@dataclass(frozen=True, kw_only=True)
class Bundle:
    run: Path | None = None
    """Run folder of studies/gallery_teacher.py."""
    lora: Path | None = None
    """Run folder of the distillation."""


def main(bundle: Bundle) -> None:
    if bundle.run:
        replace(bundle.run / "pipeline", assets.gallery_teacher())
        save_reader(load_gallery_reader(bundle.run / "reader"), assets.gallery_reader())
    if bundle.lora:
        folder = assets.MODELS[assets.GALLERY_LCM]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        file = bundle.lora / "model" / DIFFUSERS_FILE
        tensors = {name: tensor.to(torch.float16) for name, tensor in read_safetensors(file).items()}
        header = read_safetensors_header(file).metadata
        safetensors.torch.save_file(tensors, folder / DIFFUSERS_FILE, {**header, "fewstep.name": assets.GALLERY_LCM})


def replace(source: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


if __name__ == "__main__":
    main(tyro.cli(Bundle))
