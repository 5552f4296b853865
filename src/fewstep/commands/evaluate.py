"""`fewstep evaluate`: scores a few-step model against its teacher under other samplers."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewstep import errors
from fewstep.data.pictures import to_images
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.benches import make_bench
from fewstep.evaluate.cell import TEACHER_STEPS, TITLES, Cell, Row
from fewstep.evaluate.columns import Column, order_by_direction
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.forecast import count_calls, count_work, say_time
from fewstep.evaluate.grid import labelled_grid
from fewstep.evaluate.metrics import list_columns
from fewstep.evaluate.painters import Painters, open_painters
from fewstep.evaluate.painting import PaintedCell, count_parts
from fewstep.evaluate.protocol import claim_report_folder, read_rows_beside
from fewstep.evaluate.report import list_columns_of, write_report
from fewstep.evaluate.scoring import MODEL, index_columns, score
from fewstep.evaluate.studio import EvaluationStudio
from fewstep.evaluate.tuning import find_best_cell
from fewstep.evaluate.worlds import find_world
from fewstep.models.extractors import Extractor
from fewstep.models.network import hash_weights
from fewstep.models.pipeline import Pipeline
from fewstep.precision import name_dtype
from fewstep.progress import report
from fewstep.runs.folder import list_versions

GRID_COLUMNS = 8
_VERSIONS = ("fewstep", "torch", "diffusers", "transformers")


def evaluate(config: Evaluate) -> dict[str, Any]:
    """Writes the report, prints its table, and returns the content of results.json."""
    evaluation = Evaluation(config)
    results = evaluation.run()
    show(results)
    print(f"report: {config.out / 'report.html'}   pictures: {config.out / 'grid.png'}", flush=True)
    return results


class Evaluation:
    """Loads everything and claims the folder, before anything is painted."""

    def __init__(self, config: Evaluate) -> None:
        self.config = config
        self.studio = studio = EvaluationStudio(config)
        if studio.data == studio.card.data and find_world(studio.data) is None:
            print(
                f"note: the model was trained on {studio.data}; give pictures held out from it with --data", flush=True
            )
        # May refuse: before anything is claimed.
        self._bench, reference_sha256 = make_bench(studio.found, studio.extractor, studio.reader, studio.clip)
        self._tuning = dataclasses.replace(self._bench, roster=studio.found.tuning)
        made, roster = list_versions(), studio.found.scored
        self.protocol = {
            "n": roster.main, "n_unseen": roster.unseen, "repeats": roster.repeats, "seed": config.seed,
            "prompts": studio.data, "prompts_sha256": roster.sha256, "resolution": studio.teacher.resolution,
            "batch_size": studio.batch_size, "precision": name_dtype(studio.dtype),
            "guidance": "diffusers' guidance_scale, the papers' ω + 1",
            "extractor": _describe_extractor(studio.extractor),
            "clip": None if studio.clip is None else _describe_extractor(studio.clip),
            "reference": {"pictures": len(studio.found.real), "sha256": reference_sha256},
            "teacher": {"source": studio.teacher_source, "sha256": hash_weights(studio.teacher.network.backbone)},
            "versions": {name: made[name] for name in _VERSIONS},
            **({"real_pictures": dict(self._bench.real)} if self._bench.real else {}),
        }  # fmt: skip
        self._name = studio.student.name
        self._beside = [row for folder in config.beside for row in read_rows_beside(folder, self.protocol)]
        model = {"source": config.model, "loras": list(config.lora), "sha256": _model_sha256(studio.student)}
        if config.sampler != "auto":
            model["sampler"] = config.sampler
        self._evaluated = {**model, "tuning_pictures": config.n_tuning}
        if claim_report_folder(config.out, {"model": model, "tuning": config.n_tuning, **self.protocol}):
            print(f"note: {config.out} has begun before; what is painted there is not painted again", flush=True)
        for column in list_columns():
            if roster.main < (few := column.biased_below):
                print(f"note: n is {roster.main}; {column.plural} of fewer than {few} lean upwards", flush=True)
        self._painters: Painters | None = None

    def run(self) -> dict[str, Any]:
        """Paints and scores every row that is not there yet."""
        with open_painters(self.config, self.studio) as self._painters:
            if self._painters is None:
                return self._run(1, torch.get_num_threads())
            return self._run(self._painters.count, 1)

    def _run(self, processes: int, threads: int) -> dict[str, Any]:
        tried: list[Row] = []
        scales = self._guidance_scales()
        first, spacings = scales[0], self.config.spacings
        asked = 1 if self.studio.teacher.family.guided_inside else 2
        cells = [Cell("teacher", TEACHER_STEPS, "trailing", first, asked)]
        cells += [
            Cell(sampler, n, spacings[0], first, asked) for sampler in self.config.samplers for n in self.config.steps
        ]
        cells += [Cell("lcm", n, "lcm", first) for n in self.config.steps if n <= self.studio.student.grid_size]
        rows: list[Row] = []
        pictures: list[tuple[str, list[Image.Image]]] = []
        bench = self._bench
        self._foretell(cells, scales)
        for number, start in enumerate(cells, 1):
            print(f"{number} of {len(cells)}: {start.sampler}, steps {start.steps} …", file=sys.stderr, flush=True)
            allowed = self._trained_for(scales) if start.sampler == "lcm" else scales
            spaced = spacings if start.sampler != "teacher" else ("trailing",)
            cell, more = find_best_cell(start, allowed, spaced, self._tune, self._paint_for_tuning)
            tried += more
            row, kept = self._score(bench, cell)
            if cell.sampler == "teacher":
                bench = dataclasses.replace(bench, teacher_latents=kept.latents)
                row, _ = self._score(bench, cell)
            rows.append(row)
            pictures.append((f"{TITLES[cell.sampler]}, {cell.steps}", self._first(cell, kept)))
            print(f"{cell.sampler} {cell.steps}: {_summarise(row)}", file=sys.stderr, flush=True)
            report("evaluation", number, len(cells))
        rows += self._beside
        painted = {"device": self.studio.device.type, "processes": processes, "threads_each": threads}
        results = {
            "evaluated": self._evaluated, "protocol": self.protocol, "painted_by": painted, "rows": rows,
            "tuning": tried,
        }  # fmt: skip
        headings = bench.roster.prompts[:GRID_COLUMNS]
        write_report(self.config.out, results, labelled_grid(pictures, headings))
        return results

    def _foretell(self, cells: Sequence[Cell], scales: Sequence[float]) -> None:
        """Paints the first pictures and says how long all will take; nothing where they are there already."""
        studio, tuned = self.studio, [self._count_tuned(cell, scales) for cell in cells]
        left = studio.jobs(cells[0], tuning=tuned[0] > 0)
        if len(left) < count_parts(studio.bare(tuning=tuned[0] > 0), studio.batch_size):
            return
        jobs = left[: self._painters.count if self._painters else 1]
        begun = time.perf_counter()
        if self._painters:
            self._painters.paint(jobs)
        else:
            studio.run(jobs[0])
        seconds = time.perf_counter() - begun
        work = count_work(cells, count_parts(studio.bare(tuning=False), studio.batch_size), tuned)
        whole = say_time(seconds * work / (count_calls(cells[0]) * len(jobs)))
        print(f"about {whole} in all, as the first pictures took {say_time(seconds)}", file=sys.stderr, flush=True)

    def _count_tuned(self, cell: Cell, scales: Sequence[float]) -> int:
        """Counts the parts that are painted of a cell, at most, to choose its guidance and its spacing."""
        scales = self._trained_for(scales, notes=False) if cell.sampler == "lcm" else scales
        spacings = 1 if cell.sampler in ("teacher", "lcm") else len(self.config.spacings)
        tried = len(scales) + spacings - 1
        return tried * count_parts(self.studio.bare(tuning=True), self.studio.batch_size) if tried > 1 else 0

    def _guidance_scales(self) -> tuple[float, ...]:
        return tuple(sorted(self.config.guidance_scale)) or (1.5, 3.0, 5.0, 8.5)

    def _trained_for(self, scales: Sequence[float], *, notes: bool = True) -> list[float]:
        """Picks scales in the few-step model's range, or what is built into it."""
        student = self.studio.student
        low, high = student.model.card.guidance_range or (1.0, math.inf)
        if not student.takes_guidance:
            return [student.guidance_scale]
        fitting = [scale for scale in scales if low <= scale <= high]
        if notes and self.config.guidance_scale and not fitting:
            asked = ", ".join(f"{scale:g}" for scale in scales)
            print(
                f"note: the few-step model was trained for guidance of {low:g} to {high:g} and is scored at its own, "
                f"{student.guidance_scale:g}, not at {asked}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return fitting or [student.guidance_scale]

    def _paint_for_tuning(self, cells: Sequence[Cell]) -> None:
        """Paints them together, since each alone keeps the painters waiting for the last of its few parts."""
        if self._painters:
            self._painters.paint([job for cell in cells for job in self.studio.jobs(cell, tuning=True)])

    def _tune(self, cell: Cell) -> Row:
        return self._score(self._tuning, cell, tuning=True)[0]

    def _score(self, bench: Bench, cell: Cell, *, tuning: bool = False) -> tuple[Row, PaintedCell]:
        if self._painters:
            self._painters.paint(self.studio.jobs(cell, tuning=tuning))
        name = self._name if cell.sampler == "lcm" else "teacher"
        folder = self.studio.folder(tuning=tuning)
        return score(bench, cell, self.studio.painter(cell), name, self.studio.batch_size, folder)

    def _first(self, cell: Cell, kept: PaintedCell) -> list[Image.Image]:
        model = self.studio.student.model if cell.sampler == "lcm" else self.studio.teacher
        return to_images(model.codec.decode(kept.latents[:GRID_COLUMNS].to(model.device)))


def _describe_extractor(extractor: Extractor) -> dict[str, str]:
    resize = "none" if extractor.resize == "none" else f"{extractor.resize}, Pillow's bicubic on floats, antialiased"
    return {"name": extractor.name, "sha256": extractor.sha256, "resize": resize}


def _model_sha256(pipeline: Pipeline) -> str:
    backbone = pipeline.model.network.backbone
    total = hashlib.sha256(hash_weights(backbone).encode())
    for name, value in sorted(backbone.state_dict().items()):
        if ".lora_" in name:
            total.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _summarise(row: Row) -> str:
    """Says the figures by which a row is told from another at a glance."""
    columns = [column for column in order_by_direction(list_columns()) if column.is_headline]
    return ", ".join(f"{c.label} {row[c.name]:.3g}" for c in columns if row.get(c.name) is not None)


def show(results: dict[str, Any]) -> None:
    """Prints the table on the terminal, without intervals, and below it what its columns say."""
    rows, known = results["rows"], index_columns()
    several = len({row["model"] for row in rows if row["sampler"] == "lcm"}) > 1
    columns = [known.get(name, Column(name)) for name in list_columns_of(rows) if several or name != MODEL.name]
    columns = [column for column in columns if column.on_terminal]
    table = Table(title=f"{results['protocol']['n']} pictures a row", padding=(0, 1, 0, 0), box=None)
    for column in columns:
        words = any(isinstance(row.get(column.name), str) for row in rows)
        table.add_column(column.heading or column.name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_shorten(row.get(column.name))) for column in columns))
    legend = Table(show_header=False, padding=(0, 1, 0, 0), box=None)
    legend.add_column(no_wrap=True)
    for column in columns:
        if column.meaning:
            legend.add_row(column.heading or column.name, Text(column.meaning))
    Console().print(table, Text(), legend)


def _shorten(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else errors.show(value, 200)
