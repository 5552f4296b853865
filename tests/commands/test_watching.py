"""`--eval-every`: small evaluations along the way, once for each update however often the run is started."""

import dataclasses
import json

import pytest

from fewstep.commands.distill import distill
from fewstep.errors import UserError
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill


def rows_of(out):
    rows = [json.loads(line) for line in (out / "evaluations.jsonl").open()]
    for row in rows:
        assert row.pop("seconds_per_image") > 0
    return rows


@pytest.mark.parametrize(
    ("adapters", "eval_steps"),
    [({}, (1, 2)), ({"lora_rank": 4, "guidance_range": (5.0, 5.0)}, (1,))],
    ids=["whole", "lora"],
)
def test_evaluations_are_those_of_the_exported_weights(random_teacher, tmp_path, adapters, eval_steps, monkeypatch):
    config = Distill(
        teacher=str(random_teacher), steps=2, batch_size=4, pictures=16, lr=1e-3, ema_decay=0.5, sample_every=0,
        checkpoint_every=1, eval_every=1, eval_steps=eval_steps, out=tmp_path / "run", device="cpu", **adapters,
    )  # fmt: skip
    monkeypatch.setattr("fewstep.evaluate.scenes_bench.REFERENCE_SCENES", 256)
    distill(config)
    rows = rows_of(config.out)
    assert [(row["step"], row["steps"]) for row in rows] == [(step, n) for step in (1, 2) for n in eval_steps]
    assert {row["guidance_scale"] for row in rows} == {5.0}
    student = load_pipeline(config.out / "model", "cpu")
    cell = Cell("lcm", eval_steps[-1], "lcm", 5.0)
    row, _ = score(make_scenes_bench(make_scenes_roster(128)), cell, painter_of(cell, None, student), "run")
    del row["seconds_per_image"]
    assert rows[-1] == {"step": 2, **row}
    first = rows[len(eval_steps) - 1]
    assert (first["step"], first["steps"]) == (1, eval_steps[-1])
    assert first["fd"] != rows[-1]["fd"]
    # Cut off within the last update's evaluation: made up for, and nothing twice.
    kept = (config.out / "evaluations.jsonl").read_text().splitlines(keepends=True)[: len(eval_steps)]
    (config.out / "evaluations.jsonl").write_text("".join(kept))
    (config.out / "model").rename(tmp_path / "away")
    distill(config)
    assert rows_of(config.out) == rows


def test_own_pictures_need_others_and_features_to_be_watched(tmp_path):
    with pytest.raises(UserError, match="give --eval-data and --eval-extractor"):
        Distill(data=str(tmp_path), eval_every=5)
    assert dataclasses.replace(Distill(), eval_every=5).eval_n == 128


def test_steps_that_no_model_of_the_run_allows_are_refused(random_teacher, tmp_path):
    with pytest.raises(UserError, match="eval_steps are"):
        Distill(eval_every=5, eval_steps=(0, 4))
    config = Distill(
        teacher=str(random_teacher), steps=1, batch_size=2, pictures=8, skip=100, eval_every=1, eval_steps=(4, 16),
        out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    with pytest.raises(UserError, match="eval_steps has 16 and with skip 100 a model allows 10"):
        distill(config)
