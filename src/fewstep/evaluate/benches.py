"""What an evaluation is made with, from a configuration's words: prompts, real pictures and those who judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.data.kind import SourceRequest
from fewstep.data.opening import open_pictures
from fewstep.data.sources.squares import SquarePictures
from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.roster import PROMPT_SEED, Roster, make_captions_roster
from fewstep.evaluate.scenes_bench import compute_real_features
from fewstep.evaluate.style import fit_probe
from fewstep.evaluate.worlds import WORLDS, WorldReader, find_world
from fewstep.models.extractors import Extractor, load_extractor

READER = "reader"
_TUNING_APART = 50_000_000  # between the seeds of scored pictures and of those by which guidance is chosen


@dataclass(frozen=True, kw_only=True)
class BenchMaterial:
    """Prompts and real pictures."""

    scored: Roster
    tuning: Roster
    """Other prompts, by which guidance and spacing are chosen."""
    real: SquarePictures
    others: SquarePictures | None = None
    """Real pictures of the look that the one asked for is told from."""
    option: str = "n"
    """Is what users call the number of scored pictures."""


def material(
    pictures: SourceRequest, *, n: int, n_unseen: int = 0, repeated: int = 0, n_tuning: int = 0, seed: int = 0,
    option: str = "n",
) -> BenchMaterial:  # fmt: skip
    """`pictures` are a bundled world, drawn afresh, or a folder of captioned pictures."""
    data = pictures.data
    if world := find_world(data):
        return BenchMaterial(
            scored=world.draw_prompts(n, n_unseen, repeated, seed=seed),
            tuning=world.draw_prompts(n_tuning, seed=seed, prompt_seed=PROMPT_SEED + 2),
            real=world.draw_real(),
            others=world.draw_others(),
            option=option,
        )
    real = SquarePictures(open_pictures(pictures), pictures.resolution)
    count = len(real)
    if count < n:
        raise UserError(f"{data} has {count} captions and {option} is {n}; give {count} or less")
    captions = [real.caption(i) for i in range(min(count, n + n_tuning))]
    others = _cycle(captions[n:] or captions, n_tuning)
    return BenchMaterial(
        scored=make_captions_roster(captions[:n], repeated, seed=seed),
        tuning=make_captions_roster(others, seed=seed + _TUNING_APART),
        real=real,
        option=option,
    )


def _cycle(captions: Sequence[str], count: int) -> list[str]:
    return [captions[i % len(captions)] for i in range(count)]


def pick_judges(
    data: str, extractor: str, device: torch.device, reader: str = ""
) -> tuple[Extractor, WorldReader | None]:  # fmt: skip
    """Picks the extractor that distances compare with, and who reads the pictures of a bundled world: the bundled
    reader, or that of a folder. Raises UserError where there is none, and no other extractor."""
    world = find_world(data)
    name = extractor or (READER if world else "")
    if not name and "://" not in data and not Path(data).exists():
        raise UserError(f"data {data} is not there; give a folder of captioned pictures, or {' or '.join(WORLDS)}")
    if world is None and reader:
        raise UserError(f"reader {reader} reads a bundled world, which {data} is not; leave --reader out")
    if not name:
        raise UserError(
            f"pictures of your own ({data}) are compared by the features of a network: give --extractor, a folder of "
            "CLIP or DINOv2, or the Inception file"
        )
    if world is None:
        if name == READER:
            raise UserError("readers read bundled worlds and no other pictures; give another --extractor")
        return load_extractor(name, device), None
    if name != READER and not reader and not world.has_reader():
        return load_extractor(name, device), None
    read_by = world.load_reader(reader)
    judge = read_by.extractor if name == READER else load_extractor(name, device)
    return judge, read_by if world.obeys() else None


def make_bench(
    found: BenchMaterial, extractor: Extractor, reader: WorldReader | None, clip: Extractor | None = None
) -> tuple[Bench, str]:
    """Makes the bench of the scored prompts, and returns it with the real pictures' hash.

    Raises UserError where there are too few pictures for the extractor's features.
    """
    reference, sha256 = compute_real_features(extractor, found.real)
    for what, count in ((f"{found.option} is", found.scored.main), ("the real pictures are", len(found.real))):
        if count < 2 * reference.shape[1]:
            raise UserError(
                f"{what} {count}; {extractor.name} has {reference.shape[1]} features; needed: twice as many, "
                f"{2 * reference.shape[1]} or more"
            )
    style = None if found.others is None else fit_probe(reference, compute_real_features(extractor, found.others)[0])
    real = {} if reader is None else reader.measure_real(found.scored)
    return Bench(found.scored, extractor, reference, reader, style, clip, real), sha256
