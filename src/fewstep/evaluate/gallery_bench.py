"""What pictures of the gallery are scored with: its reader, and prompts whose exact laws are known."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from fewstep import assets
from fewstep.data.pictures import from_levels, to_levels, to_pixels
from fewstep.data.sources.squares import SquarePictures
from fewstep.data.worlds.gallery import Gallery, Level, draw_agreeing_scene
from fewstep.data.worlds.gallery_art import Hand
from fewstep.data.worlds.gallery_drawing import SIDE, draw_gallery_scene
from fewstep.data.worlds.gallery_scene import GalleryPrompt, GalleryScene
from fewstep.data.worlds.gallery_source import HANDS, GalleryExamples
from fewstep.errors import UserError
from fewstep.evaluate.gallery_coverage import Coverage, measure_coverage
from fewstep.evaluate.gallery_reader import GalleryReader, load_gallery_reader, read_gallery
from fewstep.evaluate.reader import READER_FILE, hash_reader
from fewstep.evaluate.roster import PROMPT_SEED, Roster, space_seeds
from fewstep.evaluate.worlds import BenchWorld
from fewstep.models.extractors import Extractor

REFERENCE_PICTURES = 2048
REPEATS = 32
"""Pictures of each repeated prompt: a distance to a law with six grounds needs some dozens."""
_OPEN: tuple[Level, ...] = ("partial", "kind", "open")


class GalleryJudge:
    """The gallery's reader as an evaluation asks it; pictures are in one artist's hand."""

    def __init__(self, reader: GalleryReader, hand: Hand = "noto") -> None:
        self._reader, self._hand = reader, hand
        self._last: tuple[Tensor, list[GalleryScene | None], Tensor] | None = None
        self.extractor = Extractor("the gallery reader", hash_reader(reader), "none", lambda each: self._look(each)[1])

    def read(self, pictures: Tensor) -> list[GalleryScene | None]:
        return self._look(pictures)[0]

    def _look(self, pictures: Tensor) -> tuple[list[GalleryScene | None], Tensor]:
        """Returns scenes, and features `[b, 128]`; metrics ask of the same pictures one after the other."""
        if self._last is None or self._last[0] is not pictures:
            self._last = (pictures, *read_gallery(self._reader, from_levels(pictures)))
        return self._last[1:]

    def agrees(self, shown: GalleryScene, stated: GalleryPrompt) -> bool:
        return stated.agrees_with(shown)

    def measure_real(self, roster: Roster) -> Mapping[str, float]:
        """Draws, for every repeated prompt, as many scenes from its exact law, and reads them: any that is not right
        was misread."""
        rng = random.Random(f"real pictures {PROMPT_SEED}")

        def draw(prompt: GalleryPrompt) -> list[GalleryScene | None]:
            drawn = [draw_gallery_scene(draw_agreeing_scene(rng, prompt), rng, self._hand)[0] for _ in range(repeats)]
            return self.read(to_levels(to_pixels(drawn)))

        prompts, repeats = list_repeated(roster), roster.repeats
        return describe_coverage(measure_coverage(prompts, [draw(prompt) for prompt in prompts])) if prompts else {}


def list_repeated(roster: Roster) -> list[GalleryPrompt]:
    """Lists what the repeated prompts state, each once."""
    return (roster.stated or [])[roster.repeated_part][:: max(1, roster.repeats)]


def describe_coverage(coverage: Coverage) -> dict[str, float]:
    """Returns values by the names of the columns of `metrics/coverage.py`, without axes that no prompt leaves open."""
    axes = {f"coverage_{axis}": value for axis, value in coverage.distances.items()}
    values = {"coverage": coverage.mean, **axes, "repeats": coverage.repeats, "right": coverage.accuracy}
    return {name: value for name, value in values.items() if not math.isnan(value)}


class GalleryWorld(BenchWorld):
    """The gallery in an artist's hand."""

    def draw_prompts(
        self, n: int, n_unseen: int = 0, repeated: int = 0, *, seed: int = 0, prompt_seed: int = PROMPT_SEED  # noqa: ARG002
    ) -> Roster:  # fmt: skip
        """Draws captions of every level; then `repeated` that leave something open, each `REPEATS` times. None is of
        things held out, whose names no reader knows: `n_unseen` is not heeded."""
        main = [Gallery(prompt_seed, "test").prompt(i) for i in range(n)]
        few = itertools.islice(draw_open_prompts(prompt_seed), repeated)
        again = [pair for pair in few for _ in range(REPEATS)]
        pairs = [*main, *again]
        return Roster(
            [text for text, _ in pairs], space_seeds(seed, n, 0, len(again)), [prompt for _, prompt in pairs], n, 0,
            REPEATS if again else 0,
        )  # fmt: skip

    def draw_real(self) -> SquarePictures:
        return draw_reference(HANDS[self.data])

    def draw_others(self) -> SquarePictures | None:
        return None if self.data == assets.GALLERY else draw_reference("noto")

    def has_reader(self) -> bool:
        return (assets.GALLERY_READER / READER_FILE).is_file()

    def load_reader(self, folder: str) -> GalleryJudge:
        place = Path(folder) if folder else assets.GALLERY_READER
        if not folder and not self.has_reader():
            raise UserError(
                f"no reader of {self.data} is bundled yet: give --reader, a folder that studies/gallery_teacher.py "
                "wrote, or --extractor for distances alone"
            )
        return GalleryJudge(load_gallery_reader(place), HANDS[self.data])


def draw_open_prompts(prompt_seed: int) -> Iterator[tuple[str, GalleryPrompt]]:
    """Yields captions with what they state, of each level that leaves something open in turn, without end."""
    galleries = [Gallery(prompt_seed, "test", level=level) for level in _OPEN]
    for i in itertools.count():
        yield galleries[i % len(galleries)].prompt(i)


def draw_reference(hand: Hand) -> SquarePictures:
    """Draws real pictures that no training set holds by default."""
    world = Gallery(PROMPT_SEED + 1, "test", hand)
    return SquarePictures(GalleryExamples(world, REFERENCE_PICTURES), SIDE)
