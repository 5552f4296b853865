"""`evaluate` on the gallery: accuracy and coverage by its reader, and what a model that collapses or repeats has."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import zlib

import pytest
import torch

from fewstep import assets
from fewstep.commands.evaluate import Evaluate, evaluate
from fewstep.data.kind import SourceRequest
from fewstep.data.pictures import to_levels, to_pixels
from fewstep.data.worlds.gallery import Gallery, draw_agreeing_scene
from fewstep.data.worlds.gallery_drawing import draw_gallery_scene
from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench, PaintedBatch
from fewstep.evaluate.benches import material, pick_judges
from fewstep.evaluate.gallery_bench import GalleryJudge, GalleryWorld, list_repeated
from fewstep.evaluate.gallery_reader import GalleryReader
from fewstep.evaluate.metrics import compute_columns, list_observers
from fewstep.evaluate.metrics.coverage import to_numbers, to_scene
from fewstep.evaluate.painting import PaintedCell
from fewstep.evaluate.reader import save_reader

CPU = torch.device("cpu")
N, REPEATED, REPEATS = 64, 6, 32


class KnowingJudge(GalleryJudge):
    """Knows by heart what every picture shows that it was shown."""

    def __init__(self):
        super().__init__(GalleryReader())
        self._known = {}

    def learn(self, image, scene):
        levels = to_levels(to_pixels([image]))[0]
        self._known[zlib.crc32(levels.numpy().tobytes())] = scene
        return levels

    def _look(self, pictures):
        scenes = [self._known.get(zlib.crc32(picture.numpy().tobytes())) for picture in pictures]
        return scenes, pictures.float().mean((1, 2))


@pytest.fixture(scope="module")
def judge():
    return KnowingJudge()


@pytest.fixture(scope="module")
def bench(judge):
    roster = GalleryWorld("gallery").draw_prompts(N, 8, REPEATED)
    reference = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))
    bare = Bench(roster, judge.extractor, reference, judge)
    return dataclasses.replace(bare, real=score(bare, paint(bare, judge, 9)))


def paint(bench, judge, seed, change=lambda scene, prompt, rng: scene):  # noqa: ARG005
    """The pictures of a model that paints from the exact law of every prompt, but for what `change` makes of it."""
    rng = random.Random(seed)
    scenes = [change(draw_agreeing_scene(rng, prompt), prompt, rng) for prompt in bench.roster.stated]
    return torch.stack([judge.learn(draw_gallery_scene(scene, rng)[0], scene) for scene in scenes])


def score(bench, pictures):
    """The row's columns, of pictures kept as an evaluation keeps them."""
    observed = {}
    for name, observe in list_observers().items():
        batch = PaintedBatch(pictures, torch.zeros(len(pictures), 1, 1, 1), list(range(len(pictures))), bench)
        if (value := observe(batch)) is not None:
            observed[name] = value
    return compute_columns(PaintedCell(observed, torch.zeros(len(pictures), 1, 1, 1), 0.0), bench)


@pytest.fixture(scope="module")
def exact(bench, judge):
    return score(bench, paint(bench, judge, 1))


def test_prompts_are_of_every_level_and_repeated_ones_leave_something_open(bench):
    roster = bench.roster
    assert (len(roster), roster.main, roster.unseen, roster.repeats) == (N + REPEATED * REPEATS, N, 0, REPEATS)
    assert roster.prompts[:N] == [Gallery(1_000_003, "test").prompt(i)[0] for i in range(N)]
    assert len(set(roster.prompts[N:])) == len(list_repeated(roster)) == REPEATED
    assert len(set(roster.seeds)) == len(roster)
    assert all(prompt.ground is None or prompt.arrangement is None for prompt in list_repeated(roster))


def test_a_model_that_paints_the_exact_law_is_as_good_as_real_pictures(exact):
    assert exact["prompt_accuracy"] == 1
    assert exact["coverage_to_real"] == pytest.approx(1, abs=0.15)
    assert exact["repeats"] < 0.02
    assert 0 < exact["coverage_ground"] < 0.25  # what 32 pictures of six grounds have


def on_sand(scene, prompt, rng):  # noqa: ARG001
    """Paints one ground wherever it may."""
    return dataclasses.replace(scene, ground=prompt.ground or "sand")


def test_a_model_that_collapses_obeys_and_is_caught(bench, judge, exact):
    found = score(bench, paint(bench, judge, 1, on_sand))
    assert found["prompt_accuracy"] == 1
    # Of the prompts that leave it open all but a sixth of the mass is misplaced.
    assert found["coverage_ground"] == pytest.approx(5 / 6, abs=1e-6)
    assert found["coverage_to_real"] > exact["coverage_to_real"] + 0.4
    assert found["coverage_thing"] == pytest.approx(exact["coverage_thing"], abs=0.05)


def test_a_picture_repeated_for_every_seed_is_caught(bench, judge, exact):
    again = bench.roster.repeated_part.start
    pictures = paint(bench, judge, 1)
    pictures[again:] = pictures[again::REPEATS].repeat_interleave(REPEATS, 0)
    found = score(bench, pictures)
    assert found["prompt_accuracy"] == 1
    assert found["repeats"] == 1
    assert found["coverage"] > 0.6 > exact["coverage"]
    assert found["diversity"] == pytest.approx(0, abs=1e-9)


def test_wrong_and_unreadable_pictures_are_wrong_and_far(bench, judge):
    shuffled = paint(bench, judge, 1).roll(N // 2, 0)
    assert score(bench, shuffled)["prompt_accuracy"] < 0.5
    nothing = score(bench, torch.zeros(len(bench.roster), 64, 64, 3, dtype=torch.uint8))
    assert nothing["prompt_accuracy"] == 0
    assert nothing["coverage"] == pytest.approx(1)
    assert nothing["repeats"] is None  # nothing was read


def test_real_pictures_are_drawn_from_the_laws_and_read_by_the_same_reader(bench, judge):
    class Blind(KnowingJudge):
        def _look(self, pictures):
            return [None] * len(pictures), torch.zeros(len(pictures), 3)

    assert Blind().measure_real(bench.roster) == pytest.approx(
        {"coverage": 1, "right": 0, **{f"coverage_{axis}": 1 for axis in ("thing", "size", "place", "ground")}}
    )
    assert judge.measure_real(GalleryWorld("gallery").draw_prompts(4)) == {}


def test_scenes_are_kept_as_numbers():
    scenes = [None, *(Gallery(seed=3)[i].scene for i in range(40))]
    assert [to_scene(to_numbers(scene)) for scene in scenes] == scenes
    assert {len(scene.things) for scene in scenes[1:]} == {1, 2, 3}


def test_without_a_reader_it_is_refused_in_one_line(tmp_path):
    for folder, said in (
        ("", "no reader of gallery is bundled yet: give --reader, a folder that studies/gallery_teacher.py wrote"),
        (str(tmp_path / "none"), "none/reader.safetensors"),
    ):
        with pytest.raises(UserError) as told:
            pick_judges("gallery", "", CPU, folder)
        assert said in str(told.value)
        assert "\n" not in str(told.value)


def test_a_reader_of_another_world_is_refused(tmp_path):
    save_reader(GalleryReader(), tmp_path)
    with pytest.raises(UserError, match=r"holds the weights of another reader"):
        pick_judges("scenes", "", CPU, str(tmp_path))
    with pytest.raises(UserError, match=r"reads a bundled world, which .* is not; leave --reader out"):
        pick_judges(str(tmp_path), "clip", CPU, str(tmp_path))


def test_in_the_other_hand_it_has_a_share_in_style_too():
    found = material(SourceRequest(data="gallery-twemoji", resolution=64), n=4, n_tuning=3)
    assert (found.real.caption(0), len(found.tuning)) == (found.others.caption(0), 3)
    assert found.real[0].image.tobytes() != found.others[0].image.tobytes()
    assert set(found.tuning.prompts).isdisjoint(found.scored.prompts)


def test_the_reader_is_the_extractor_unless_another_is_asked_for(tmp_path, clip):
    save_reader(GalleryReader(), tmp_path)
    extractor, reader = pick_judges("gallery-twemoji", "", CPU, str(tmp_path))
    pictures = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    assert extractor is reader.extractor
    assert extractor.name == "the gallery reader"
    assert extractor.features(pictures).shape == (2, 128)
    assert len(reader.read(pictures)) == 2
    extractor, reader = pick_judges("gallery", str(clip), CPU)
    assert (extractor.features(pictures).shape, reader) == ((2, 16), None)  # distances alone


def test_the_command_has_a_column_of_each(tmp_path, monkeypatch, capsys, clip):
    for name, value in {"gallery_bench.REFERENCE_PICTURES": 40, "gallery_bench.REPEATS": 3}.items():
        monkeypatch.setattr(f"fewstep.evaluate.{name}", value)
    monkeypatch.setattr("fewstep.commands.evaluate.TEACHER_STEPS", 1)
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    save_reader(GalleryReader(), tmp_path / "reader")
    config = Evaluate(
        model=assets.SCENES_LCM, data="gallery", reader=str(tmp_path / "reader"), extractor=str(clip), samplers=(),
        steps=(1,),
        guidance_scale=(3,), n=32, n_repeated=3, n_tuning=20, batch_size=41, out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    evaluate(config)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < results["protocol"]["real_pictures"]["coverage"] <= 1
    for row in results["rows"]:
        assert 0 <= row["prompt_accuracy"] <= 1
        assert row["prompt_accuracy_unseen"] is None
        assert row["coverage_to_real"] == pytest.approx(
            row["coverage"] / results["protocol"]["real_pictures"]["coverage"], rel=1e-4
        )
        assert not math.isnan(row["fd"])
    said = capsys.readouterr()
    heading = next(line for line in said.out.splitlines() if "guid." in line)
    assert {"right", "cover", "same"} <= set(heading.split())
    assert "coverage to real" in (tmp_path / "out" / "table.md").read_text()
    assert "was trained on" not in said.out
