"""A metric is one file and one line: its column shows up wherever a table, a curve or a figure is."""

import json
import sys
from pathlib import Path
from typing import get_args

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.commands.evaluate import evaluate, show
from fewstep.evaluate import metrics
from fewstep.evaluate.baselines import SAMPLERS, SamplerName
from fewstep.evaluate.cell import COLUMNS, TITLES, Cell
from fewstep.evaluate.columns import Column
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.report import list_columns_of
from fewstep.evaluate.scoring import MODEL, SECONDS, index_columns
from fewstep.evaluate.tuning import rate
from fewstep.recipes.distill import Distill

DOCS = Path(__file__).parents[2] / "docs"
REDNESS = """
from fewstep.evaluate.bench import Metric
from fewstep.evaluate.columns import Column


def measure_red(batch):
    return batch.pictures[..., 0].double().mean((1, 2))


def compute_redness(red, bench):
    return {"mean_redness": float(red.mean()), "mean_redness_low": float(red.min()),
            "mean_redness_high": float(red.max())}


METRICS = (
    Metric(measure_red, compute_redness, (
        Column("mean_redness", "How red <it> is.", heading="red", better="more", curve_label="mean of the red channel",
               chooses=True, biased_below=1_000_000, plural="means of red"),
    )),
)
"""


@pytest.fixture
def redness(tmp_path, monkeypatch):
    """A metric in a file of its own, before all others."""
    (tmp_path / "redness.py").write_text(REDNESS)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(metrics, "METRICS", metrics.load_metrics(("redness", *metrics._FILES)))
    monkeypatch.setattr("fewstep.evaluate.scenes_bench.REFERENCE_SCENES", 256)
    yield
    del sys.modules["fewstep.evaluate.metrics.redness"], metrics.redness


@pytest.mark.usefixtures("redness")
def test_a_new_metric_is_in_every_table_and_curve_and_is_chosen_by(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fewstep.commands.evaluate.TEACHER_STEPS", 2)
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "report"
    config = Evaluate(
        model=assets.SCENES_LCM, samplers=("euler",), steps=(1,), guidance_scale=(2, 3), spacings=("trailing",),
        n=128, n_unseen=0, n_repeated=0, n_tuning=20, batch_size=32, out=out, device="cpu",
    )  # fmt: skip
    results = evaluate(config)
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len({row["mean_redness"] for row in rows}) == len(rows) == 3
    table, said = (out / "table.md").read_text(), capsys.readouterr()
    assert "| mean redness |" in table.splitlines()[0]
    assert f"| {rows[0]['mean_redness']:.3g} ({rows[0]['mean_redness_low']:.3g} to " in table
    page = (out / "report.html").read_text()
    assert "<th>mean redness</th>" in page
    assert "<dt>mean redness</dt><dd>How red &lt;it&gt; is.</dd>" in page
    assert page.count("<!-- mean of the red channel -->") == 2  # over steps and over time
    assert "Of 128 pictures, means of red lean upwards" in page
    choices = page.partition("<details>")[2]
    assert "<th>mean redness</th>" in choices
    assert all(f"<td>{row['mean_redness']:.3g} (" in choices for row in results["tuning"])
    heading = next(line for line in said.out.splitlines() if "guid." in line)
    assert "red" in heading.split()
    assert said.err.count(": mean redness ") == len(rows)
    for row in rows:
        tried = [one for one in results["tuning"] if one["sampler"] == row["sampler"]]
        assert row["guidance_scale"] == max(tried, key=lambda one: one["mean_redness"])["guidance_scale"]


@pytest.mark.usefixtures("redness")
def test_a_new_metric_is_watched_along_a_run(random_teacher, tmp_path, capsys):
    config = Distill(
        teacher=str(random_teacher), steps=1, batch_size=4, pictures=8, sample_every=0, eval_every=1,
        eval_steps=(1, 2), out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    distill(config)
    rows = [json.loads(line) for line in (config.out / "evaluations.jsonl").open()]
    board = EventAccumulator(str(config.out / "tensorboard")).Reload()
    for row in rows:
        (event,) = board.Scalars(f"mean_redness/{row['steps']}")
        assert event.value == pytest.approx(row["mean_redness"])
        assert {f"{name}/{row['steps']}" for name in ("prompt_accuracy", "fd", "kd")} <= set(board.Tags()["scalars"])
        assert f"mean_redness_low/{row['steps']}" not in board.Tags()["scalars"]
    said = ", ".join(f"{row['mean_redness']:.3g}" for row in rows)
    assert f"after update 1: mean redness {said} at 1, 2 steps" in capsys.readouterr().err


def test_rows_are_rated_by_accuracy_and_then_by_the_kernel_distance():
    rows = [{"prompt_accuracy": a, "kd": d, "fd": f} for a, d, f in ((0.8, 1, 1), (0.9, 5, 2), (0.9, 4, 3))]
    assert sorted(rows, key=rate) == rows
    assert rate({"kd": 2.0}) > rate({"kd": 3.0})


def test_a_column_that_could_not_do_what_it_says_is_refused():
    with pytest.raises(ValueError, match="redness: `chooses` needs `better`"):
        Column("redness", chooses=True)
    with pytest.raises(ValueError, match="`biased_below` needs `plural`"):
        Column("redness", biased_below=5)


@pytest.mark.parametrize("file", ["demo/results.json", "studies/main-best.json"])
def test_every_published_column_is_known(file):
    rows = json.loads((DOCS / file).read_text())["rows"]
    assert {name for row in rows for name in list_columns_of([row])} <= set(index_columns())


def test_each_heading_on_the_terminal_is_explained_below_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    show(json.loads((DOCS / "demo/results.json").read_text()))
    headings, *lines = capsys.readouterr().out.splitlines()[1:]
    legend = dict(line.split(maxsplit=1) for line in lines[lines.index("") + 1 :] if not line.startswith("to T"))
    assert "unseen" in legend
    assert legend["unseen"].rstrip() == "The same for prompts of a kind that no training picture shows."
    (to_teacher,) = (line for line in lines if line.startswith("to T"))
    assert "Distance of a picture's latent from the teacher's own" in to_teacher
    assert set(headings.split()) == {*legend, "steps", "to", "T"}


def test_no_two_columns_share_a_name_or_a_heading():
    columns = (MODEL, *COLUMNS, SECONDS, *metrics.list_columns())
    assert len(index_columns()) == len(columns)
    assert len({column.heading or column.name for column in columns}) == len(columns)


def test_a_samplers_name_title_and_cost_are_its_own():
    assert get_args(SamplerName) == tuple(SAMPLERS)
    assert all(name == sampler.name for name, sampler in SAMPLERS.items())
    assert len(set(TITLES.values())) == len(SAMPLERS) + 2
    calls = {name: Cell(name, 3, "trailing", 2.0).network_evaluations for name in SAMPLERS}
    assert calls == {"ddim": 6, "dpm-solver-2": 12, "dpm++": 6, "euler": 6, "unipc": 6, "midpoint": 12}
    assert Cell("teacher", 50, "trailing", 2.0).network_evaluations == 100
    assert Cell("teacher", 50, "trailing", 2.0, asked=1).network_evaluations == 50
    assert Cell("lcm", 4, "lcm", 2.0).network_evaluations == 4
