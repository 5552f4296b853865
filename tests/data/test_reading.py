"""Pictures at the positions of a run: what is cut out of them, from several sources, read ahead or not."""

import numpy as np
import pytest
from PIL import Image

from fewstep.data.latents import DroppedPicture
from fewstep.data.reading import CropSettings, PictureReader, crop_picture, hash_sources
from fewstep.data.sources.base import DroppedError, Example
from fewstep.data.sources.filters import Reason
from fewstep.data.worlds.scenes import SceneExamples, Scenes


def gradient(width, height):
    """A picture in which every column, or row, tells where it is."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[..., 0] = np.linspace(0, 255, width).round()
    levels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(levels)


class Pictures:
    """Wide and high ones in two shards; number 5 is broken."""

    shard_sizes = (7, 13)

    def __init__(self, name="a"):
        self.name = name

    def key(self, index):
        return f"{self.name}{index}"

    def caption(self, index):
        return f"caption of {index}"

    def read(self, index):
        if index == 5:
            raise DroppedError(Reason.BROKEN, self.key(index))
        return Example(gradient(40 + index, 20) if index % 2 else gradient(20, 40 + index), f"caption of {index}")


def corner(square):
    levels = np.asarray(square.image)
    return levels[0, 0, :2].tolist(), levels[-1, -1, :2].tolist()


@pytest.mark.parametrize(("size", "sizes"), [((60, 20), (20, 60, 0, 20, 20, 20)), ((20, 60), (60, 20, 20, 0, 20, 20))])
def test_the_middle_square_and_its_place(size, sizes):
    square = crop_picture(Example(gradient(*size), "words"), CropSettings(resolution=20), 0, 0)
    assert (square.image.size, square.caption, square.sizes) == ((20, 20), "words", sizes)
    axis = 0 if size[0] > size[1] else 1
    (first, last) = corner(square)
    assert first[axis] == pytest.approx(255 / 3, abs=4)
    assert last[axis] == pytest.approx(2 * 255 / 3, abs=4)


def test_the_place_is_that_in_the_resized_picture():
    square = crop_picture(Example(gradient(120, 40), ""), CropSettings(resolution=20), 0, 0)
    assert square.sizes == (40, 120, 0, 20, 20, 20)


def test_random_squares_are_anywhere_and_where_they_say():
    cut = CropSettings(resolution=20, crop="random")
    squares = [crop_picture(Example(gradient(60, 20), ""), cut, 3, i) for i in range(200)]
    lefts = [square.sizes[3] for square in squares]
    assert (min(lefts), max(lefts)) == (0, 40)
    assert len(set(lefts)) > 35
    for square in squares:
        assert square.sizes[2] == 0
        assert corner(square)[0][0] == pytest.approx(255 * square.sizes[3] / 59, abs=2)
    assert lefts == [crop_picture(Example(gradient(60, 20), ""), cut, 3, i).sizes[3] for i in range(200)]
    assert lefts != [crop_picture(Example(gradient(60, 20), ""), cut, 4, i).sizes[3] for i in range(200)]


def test_half_of_the_pictures_are_flipped():
    cut = CropSettings(resolution=20, flip=True)
    flipped = [corner(crop_picture(Example(gradient(20, 20), ""), cut, 0, i))[0][0] > 128 for i in range(400)]
    assert 0.42 < np.mean(flipped) < 0.58


def test_what_cannot_be_read_is_grey_and_told():
    reading = PictureReader([Pictures()], [1.0], CropSettings(resolution=20), 0)
    squares = reading.read_squares(range(20))
    lost = [i for i, square in enumerate(squares) if square.reason]
    assert reading.list_dropped(range(20), squares) == [DroppedPicture(lost[0], "a5", "broken picture")]
    assert squares[lost[0]].image.getextrema() == ((128, 128),) * 3
    assert sorted(square.caption for square in squares) == sorted(
        [""] + [f"caption of {i}" for i in range(20) if i != 5]
    )


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (4, 0), (1, 8), (4, 8), (4, 3)])
def test_reading_ahead_changes_nothing(workers, ahead):
    def all_of(**settings):
        sources = [Pictures(), SceneExamples(Scenes(0), 9)]
        reading = PictureReader(
            sources, [1.0, 2.0], CropSettings(resolution=20, crop="random", flip=True), 7, **settings
        )
        squares = [square for first in range(0, 64, 8) for square in reading.read_squares(range(first, first + 8))]
        return [(square.image.tobytes(), square.caption, square.sizes, square.reason) for square in squares]

    assert all_of(workers=workers, ahead=ahead) == all_of()


def test_sources_have_their_shares_and_their_own_epochs():
    reading = PictureReader([Pictures("a"), Pictures("b")], [1.0, 3.0], CropSettings(resolution=20), 0)
    assert len(reading) == 40
    keys = [reading.key(int(i)) for i in reading.indices(range(1000))]
    of_a = [key for key in keys if key.startswith("a")]
    assert len(of_a) == 250
    assert sorted(of_a[:20]) == sorted(f"a{i}" for i in range(20))


@pytest.mark.parametrize(("count", "recorded"), [(9, "48202b3636ee0f23"), (200_000, "e7386424e4504593")])
def test_what_identifies_a_runs_pictures_stays(count, recorded):
    """Of few the names of all, of many those of the shards: another hash would keep old runs from going on."""
    assert hash_sources([SceneExamples(Scenes(0), count)]).startswith(recorded)
