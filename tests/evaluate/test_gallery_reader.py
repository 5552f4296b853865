"""The gallery's reader: from answers in a grid to a scene, and the loss that teaches those answers."""

from __future__ import annotations

import torch

from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.gallery_art import list_names
from fewstep.data.worlds.gallery_scene import GROUNDS, SIZES
from fewstep.evaluate.gallery_reader import (
    GRID,
    LAYOUTS,
    GalleryReader,
    load_gallery_reader,
    read_gallery,
)
from fewstep.evaluate.reader import save_reader
from fewstep.teacher.gallery_tasks import GalleryReaderTask, draw_gallery_batch


class Oracle(GalleryReader):
    """Answers what the answers of a batch say."""

    def __init__(self, answers):
        super().__init__()
        self._answers = answers

    def forward(self, pixels):  # noqa: ARG002  # a network's signature
        layout, ground, present, size, name = self._answers
        whole = (
            torch.nn.functional.one_hot(layout, len(LAYOUTS)).float(),
            torch.nn.functional.one_hot(ground.clamp(min=0), len(GROUNDS)).float(),
        )
        cells = (
            torch.nn.functional.one_hot(each.clamp(min=0), wide).permute(0, 3, 1, 2).float()
            for each, wide in ((size, len(SIZES)), (name, len(list_names())))
        )
        return torch.zeros(len(layout), 2), *whole, present[:, None].float(), *cells


def test_right_answers_are_read_as_the_scene_that_was_drawn():
    gallery = Gallery(seed=4)
    pixels, answers = draw_gallery_batch(4, range(60), ("noto",))
    scenes, _ = read_gallery(Oracle(answers), pixels, batch_size=60)
    unreadable = [LAYOUTS[int(layout)] == "unreadable" for layout in answers[0]]
    assert 8 < sum(unreadable) < 30
    assert scenes == [None if spoilt else gallery[2 * i].scene for i, spoilt in enumerate(unreadable)]


def test_two_of_the_same_are_no_scene():
    _, answers = draw_gallery_batch(4, range(60), ("noto",))
    for name in answers[4]:
        name.fill_(0)
    scenes, _ = read_gallery(Oracle(answers), torch.zeros(60, 3, 64, 64), batch_size=60)
    assert all(scene is None or len(scene.things) == 1 for scene in scenes)


def test_every_other_batch_is_seen_as_an_autoencoder_rebuilds_it():
    seen = []

    def rebuild(pixels):
        seen.append(pixels)
        return torch.zeros_like(pixels)

    torch.manual_seed(0)
    reader = GalleryReader()
    plain, task = GalleryReaderTask(reader, 0), GalleryReaderTask(reader, 0, rebuild=rebuild)
    for counters in (range(0, 4), range(4, 8)):
        rebuilt = counters.start == 4
        assert torch.equal(task.loss(counters).total, plain.loss(counters).total) != rebuilt
    assert len(seen) == 1
    assert torch.equal(seen[0], draw_gallery_batch(0, range(4, 8))[0])


def test_loss_falls_and_weights_are_kept(tmp_path):
    torch.manual_seed(0)
    task = GalleryReaderTask(GalleryReader(), 0)
    optimizer = torch.optim.AdamW(task.student.parameters(), lr=2e-3)
    losses = []
    for _ in range(6):
        loss = task.loss(range(16)).total / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    save_reader(task.student, tmp_path)
    reader = load_gallery_reader(tmp_path)
    pixels, _ = draw_gallery_batch(1, range(4))
    assert torch.allclose(reader(pixels)[1], task.student(pixels)[1], atol=2e-2)
    assert reader.grid(pixels).shape[-2:] == (GRID, GRID)
