"""Where an evaluation's pictures are painted, in any of its processes: models, prompts, and who looks at pictures."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep import assets
from fewstep.data.kind import SourceRequest
from fewstep.data.opening import check_pictures
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.benches import material, pick_judges
from fewstep.evaluate.cell import Cell, Painter, painter_of
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.metrics import list_observers
from fewstep.evaluate.painting import count_parts, find_part, keep_part, paint_part
from fewstep.evaluate.worlds import find_world
from fewstep.models.card import StudentCard, read_card
from fewstep.models.extractors import load_extractor
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.lora.source import parse_lora, source_of
from fewstep.models.model_files import check_asked, find_run
from fewstep.models.model_places import find_exported
from fewstep.models.options import read_overrides
from fewstep.models.pipeline import read_sampler
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.precision import choose_dtype


@dataclass(frozen=True)
class PaintingJob:
    """A part of a cell, of the pictures that are scored or of those that guidance is chosen by."""

    cell: Cell
    tuning: bool
    number: int


class EvaluationStudio:
    """Models, prompts and those who look at the pictures; but for the real ones."""

    def __init__(self, config: Evaluate, number: int = 0) -> None:
        """`number` is that of the process, each of which has a GPU of its own as long as there are some."""
        self.config = config
        if config.data and find_world(config.data) is None:
            check_pictures(config.data)
        self.device = pick_device(config.device, number)
        loras = [parse_lora(given) for given in config.lora]
        self.card = _find_card(config.model)
        self.teacher_source = config.teacher or self.card.teacher or (config.model if config.lora else "")
        self.data = config.data or self.card.data or ""
        for name, value in (("teacher", self.teacher_source), ("data", self.data)):
            run = None if value else find_run(config.model)
            if run and not run.ended:
                raise UserError(f"{run.describe()}; a run is scored once it has ended")
            if not value:
                raise UserError(f"{config.model} does not say its {name}: give --{name}")
        base_config = config.base_config or self.card.base_config or ""
        self.dtype = choose_dtype(config.precision, self.device)
        read_sampler(config.sampler)  # before anything is loaded
        self.student = load_pipeline(
            config.model, str(self.device), loras, base_config if loras else "", overrides=config,
            precision=config.precision, offload="off", allow_download=config.allow_download,
        )  # fmt: skip
        self.student.use_sampler(config.sampler)
        single = base_config if os.path.isfile(self.teacher_source) else ""
        # A UNet that stands in for the model's own is the student's.
        held = self.card.to_json()
        if config.teacher:
            held.pop("base_lora", None)  # another is asked for, as it is
        said = read_overrides({**held, **config.stated(network=False)})
        data = self.data if "://" in self.data and not config.data else ""
        styles = [] if config.base_lora else map(source_of, said.base_lora)
        for named in ("" if config.teacher else self.card.teacher, said.network, data, *styles):
            check_asked(named, f"the card of {config.model}", allowed=config.allow_download)
        teacher = load_latent_model(self.teacher_source, self.device, single, said, self.dtype)
        self.teacher = teacher.share_encoders(self.student.model)
        _check_same_latents(self.student.model, self.teacher)
        self.batch_size = config.batch_size or (16 if self.teacher.resolution <= 128 else 8)
        self.extractor, self.reader = pick_judges(self.data, config.extractor, self.device, config.reader)
        self.clip = load_extractor(config.clip, self.device) if config.clip else None
        self.found = material(
            SourceRequest(
                data=self.data, resolution=self.teacher.resolution,
                selection=Selection(follow_links=config.follow_links),
            ),
            n=config.n, n_unseen=config.n_unseen, repeated=config.n_repeated, n_tuning=config.n_tuning,
            seed=config.seed,
        )  # fmt: skip
        self._bare = Bench(self.found.scored, self.extractor, torch.empty(0), self.reader, None, self.clip)

    def painter(self, cell: Cell) -> Painter:
        return painter_of(cell, self.teacher, self.student)

    def folder(self, *, tuning: bool) -> Path:
        return self.config.out / ("tuning" if tuning else "cells")

    def bare(self, *, tuning: bool) -> Bench:
        """Returns a bench that can look at pictures, not judge them."""
        return dataclasses.replace(self._bare, roster=self.found.tuning if tuning else self.found.scored)

    def run(self, job: PaintingJob) -> None:
        """Paints a part and keeps it, unless it is there."""
        self._paint(job, self._folder_of(job))

    def paint(self, job: PaintingJob) -> dict[str, Tensor]:
        """Paints a part for another process to keep."""
        return self._paint(job, None)

    def keep(self, job: PaintingJob, painted: dict[str, Tensor]) -> None:
        """Keeps a part that another process has painted."""
        keep_part(find_part(self._folder_of(job), job.number), painted)

    def _folder_of(self, job: PaintingJob) -> Path:
        return self.folder(tuning=job.tuning) / job.cell.slug

    def _paint(self, job: PaintingJob, folder: Path | None) -> dict[str, Tensor]:
        bench = self.bare(tuning=job.tuning)
        return paint_part(bench, self.painter(job.cell), list_observers(), self.batch_size, folder, job.number)

    def jobs(self, cell: Cell, *, tuning: bool) -> list[PaintingJob]:
        """Returns the painting jobs that are left of a cell."""
        folder = self.folder(tuning=tuning) / cell.slug
        numbers = range(count_parts(self.bare(tuning=tuning), self.batch_size))
        return [PaintingJob(cell, tuning, i) for i in numbers if not find_part(folder, i).exists()]


def _find_card(model: str) -> StudentCard:
    """Returns what fewstep recorded of a model, in its folder or its run's; an empty card for others."""
    return read_card(Path(find_exported(assets.find_folder(model))))


def _check_same_latents(student: LatentModel, teacher: LatentModel) -> None:
    mine, theirs = (model.codec.shape(model.resolution) for model in (student, teacher))
    if mine != theirs:
        raise UserError(f"{student.source} paints latents of {mine} and {teacher.source} of {theirs}: not its teacher")
