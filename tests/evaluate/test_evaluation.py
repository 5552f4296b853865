"""`fewstep evaluate`: results that do not depend on how the work was split, and metrics that move the right way."""

import dataclasses
import json
import os
import re
import signal
import time

import pytest
import torch
from PIL import Image
from torch.nn import functional

from fewstep import assets
from fewstep.cli import main
from fewstep.commands.demo import default_demo, make_evaluation
from fewstep.data.kind import SourceRequest
from fewstep.data.pictures import to_levels, to_pixels
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench, PaintedBatch
from fewstep.evaluate.benches import make_bench, material, pick_judges
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.frechet import frechet_distance
from fewstep.evaluate.metrics import METRICS, compute_columns, list_columns, list_observers, name_kept
from fewstep.evaluate.metrics.distances import sum_moments
from fewstep.evaluate.painting import PaintedCell, paint
from fewstep.evaluate.protocol import claim_report_folder, name_difference, read_rows_beside
from fewstep.evaluate.reader import load_reader
from fewstep.evaluate.report import list_columns_of
from fewstep.evaluate.roster import make_captions_roster, make_scenes_roster
from fewstep.evaluate.scenes_bench import ScenesReader
from fewstep.evaluate.studio import EvaluationStudio
from fewstep.evaluate.style import fit_probe
from fewstep.evaluate.tuning import find_best_cell
from fewstep.models.loading import load_latent_model
from fewstep.parallel.workers import use_one_thread
from hub_cache import put_in_cache
from warm_command import Warm
from written_shards import shard

CPU = torch.device("cpu")
N = 256
OBSERVERS = list_observers()


@pytest.fixture(scope="module")
def bench():
    reader = ScenesReader(load_reader(assets.SCENES_READER))
    extractor = reader.extractor
    real = Scenes(71, "seen")
    reference = extractor.features(to_levels(to_pixels([real[i].image for i in range(512)])))
    return Bench(make_scenes_roster(N, 0, 8, 8), extractor, reference, reader)


@pytest.fixture(scope="module")
def drawn():
    """The scenes that the prompts were said of: as good as pictures can be."""
    scenes = Scenes(1_000_003, "seen")
    images = [scenes[i].image for i in range(N)] + [scenes[i].image for i in range(8) for _ in range(8)]
    return to_levels(to_pixels(images))


def columns(bench, pictures):
    latents = pictures.float().permute(0, 3, 1, 2) / 255
    rows = list(range(len(pictures)))
    batch = PaintedBatch(pictures, latents, rows, dataclasses.replace(bench, teacher_latents=None))
    observed = {name: observe(batch) for name, observe in OBSERVERS.items()}
    found = compute_columns(
        PaintedCell({n: v for n, v in observed.items() if v is not None}, latents, 0.0), batch.bench
    )
    assert set(list_columns_of([found])) <= {column.name for column in list_columns()}
    return found


def blurred(pictures):
    pixels = pictures.permute(0, 3, 1, 2).float()
    return functional.avg_pool2d(pixels, 9, 1, 4).permute(0, 2, 3, 1).byte()


def noised(pictures):
    noise = 80 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + noise).clamp(0, 255).byte()


@pytest.mark.parametrize("spoil", [blurred, noised])
def test_spoilt_pictures_are_further_from_real_ones_and_less_obedient(bench, drawn, spoil):
    good, bad = columns(bench, drawn), columns(bench, spoil(drawn))
    assert good["prompt_accuracy"] > 0.99
    assert bad["prompt_accuracy"] < 0.7
    assert bad["fd"] > 3 * good["fd"]
    assert bad["kd"] > good["kd"] + 3 * good["kd_error"]


def test_pictures_of_other_prompts_are_as_real_and_not_obedient(bench, drawn):
    good, swapped = columns(bench, drawn), columns(bench, torch.cat([drawn[:N].roll(1, 0), drawn[N:]]))
    assert swapped["prompt_accuracy"] < 0.1
    assert swapped["fd"] == pytest.approx(good["fd"], rel=1e-3)


def test_unseen_pairs_count_apart(bench, drawn):
    apart = dataclasses.replace(bench, roster=make_scenes_roster(N - 32, 32, 8, 8))
    unseen = Scenes(1_000_003, "unseen")
    pictures = torch.cat([drawn[: N - 32], to_levels(to_pixels([unseen[i].image for i in range(32)])), drawn[N:]])
    good, wrong = columns(apart, pictures), columns(apart, torch.cat([drawn, drawn[N:]])[: len(pictures)])
    assert good["prompt_accuracy_unseen"] > 0.9
    assert wrong["prompt_accuracy_unseen"] < 0.1
    for name in ("prompt_accuracy", "fd", "kd", "diversity"):
        assert good[name] == wrong[name]


def test_one_picture_for_all_has_no_diversity_and_is_far(bench, drawn):
    good, same = columns(bench, drawn), columns(bench, drawn[:1].expand(len(drawn), -1, -1, -1))
    assert same["fd"] > 3 * good["fd"]
    assert same["diversity"] == pytest.approx(0, abs=1e-9)
    mixed = columns(bench, torch.cat([drawn[:N], drawn[:64]]))  # each "repeated" prompt in eight scenes
    assert mixed["diversity"] > 0.5


def test_share_in_style_counts_the_pictures_in_the_look_of_the_data(bench, drawn):
    worlds = {look: Scenes(71, "seen", look) for look in ("plain", "leaning")}
    plain, leaning = (
        bench.extractor.features(to_levels(to_pixels([world[i].image for i in range(512)])))
        for world in worlds.values()
    )
    told = dataclasses.replace(bench, style=fit_probe(leaning, plain))
    look = Scenes(1_000_003, "seen", "leaning")
    half = to_levels(to_pixels([look[i].image for i in range(N // 2)]))
    assert "share_in_style" not in columns(bench, drawn)
    assert columns(told, drawn)["share_in_style"] <= 0.01
    mixed = torch.cat([half, drawn[N // 2 :]])
    assert columns(told, mixed)["share_in_style"] == pytest.approx(0.5, abs=0.01)


def test_another_look_has_a_style_and_no_reader(monkeypatch):
    monkeypatch.setattr("fewstep.evaluate.scenes_bench.REFERENCE_SCENES", 256)
    extractor, reader = pick_judges("scenes-leaning", "", CPU)
    bench, _ = make_bench(material(SourceRequest(data="scenes-leaning", resolution=64), n=128), extractor, reader)
    assert bench.reader is None
    assert bench.style is not None
    plain, _ = make_bench(material(SourceRequest(data="scenes", resolution=64), n=128), *pick_judges("scenes", "", CPU))
    assert plain.reader is not None
    assert plain.style is None


def test_moments_of_shards_are_those_of_the_whole(bench):
    whole = sum_moments(bench.reference)
    shards = sum_moments(bench.reference[:300]) + sum_moments(bench.reference[300:])
    assert abs(frechet_distance(whole, shards)) < 1e-10 * float(whole.covariance.trace())


def test_distance_to_the_teacher(bench):
    metric = next(metric for metric in METRICS if metric.observe.__name__ == "keep_latents")
    z = torch.randn(len(bench.roster), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    told = dataclasses.replace(bench, teacher_latents=z)
    assert metric.compute(z, told) == {"to_teacher": 0}
    assert metric.compute(z + 0.1, told)["to_teacher"] == pytest.approx(0.1, rel=1e-5)
    assert metric.compute(other, told)["to_teacher"] == pytest.approx(2**0.5, rel=0.02)
    assert metric.compute(z, bench) == {}


def test_pictures_do_not_depend_on_how_the_work_was_split(random_teacher, bench, tmp_path):
    teacher = load_latent_model(random_teacher, CPU)
    few = dataclasses.replace(bench, roster=make_scenes_roster(10, 0, 0))
    more = dataclasses.replace(bench, roster=make_scenes_roster(23, 5, 2, 3))
    painter = painter_of(Cell("ddim", 2, "trailing", 3.0), teacher, None)
    whole = paint(more, painter, OBSERVERS, 8, tmp_path / "a")
    again = paint(more, painter, OBSERVERS, 8)
    # Some parts there already, others not; and one whose observations are lost.
    (tmp_path / "a" / "part-00001.safetensors").unlink()
    third = paint(more, painter, {"latents": OBSERVERS["latents"]}, 8, tmp_path / "b")
    resumed = paint(more, painter, OBSERVERS, 8, tmp_path / "a")
    filled = paint(more, painter, OBSERVERS, 8, tmp_path / "b")
    for other in (again, resumed, filled):
        assert (
            other.observed.keys()
            == whole.observed.keys()
            == {name for name in OBSERVERS if not name.startswith(("clip_score.", "coverage."))}
        )
        for name, values in whole.observed.items():
            assert torch.equal(values, other.observed[name]), name
    assert torch.equal(third.latents, whole.latents)
    for other in (
        paint(more, painter_of(Cell("ddim", 2, "trailing", 5.0), teacher, None), {}, 8),
        paint(dataclasses.replace(more, roster=make_scenes_roster(23, 5, 2, 3, seed=1)), painter, {}, 8),
    ):
        assert (other.latents - whole.latents).abs().mean() > 0.01
    assert torch.equal(paint(few, painter, OBSERVERS, 8).latents, whole.latents[:10])
    assert resumed.seconds_per_image > 0


def test_what_a_metric_kept_is_made_anew_once_its_file_has_changed(random_teacher, bench, tmp_path):
    def fifth(batch):
        return batch.latents[:, 0, 0, :1] + 5

    teacher = load_latent_model(random_teacher, CPU)
    few = dataclasses.replace(bench, roster=make_scenes_roster(10, 0, 0))
    painter = painter_of(Cell("ddim", 1, "trailing", 3.0), teacher, None)
    paint(few, painter, OBSERVERS, 8, tmp_path)
    (tmp_path / "part-00001.safetensors").unlink()  # of two
    before = dict(OBSERVERS)
    (name,) = [name for name in before if name.startswith("accuracy.read_as_stated.")]
    del before[name]
    changed = paint(few, painter, before | {"accuracy.read_as_stated.another": fifth}, 8, tmp_path)
    assert torch.equal(changed.observed["accuracy.read_as_stated.another"], changed.latents[:, 0, 0, :1] + 5)
    assert name_kept(METRICS[0].observe) in OBSERVERS
    assert len(set(OBSERVERS)) == len({metric.observe for metric in METRICS})


def test_the_best_guidance_and_spacing_are_taken_and_the_first_of_equals():
    scores = {(1.5, "trailing"): 0.5, (3.0, "trailing"): 0.8, (3.0, "leading"): 0.9, (3.0, "linspace"): 0.9}

    def score(cell):
        return {"prompt_accuracy": scores[cell.guidance_scale, cell.spacing], "kd": 1.0, "at": cell.slug}

    start = Cell("ddim", 4, "trailing", 1.5)
    best, tried = find_best_cell(start, (1.5, 3.0), ("trailing", "leading", "linspace"), score)
    assert best == Cell("ddim", 4, "leading", 3.0)
    assert len(tried) == 4
    worse = {**scores, (5.0, "trailing"): 0.7, (8.0, "trailing"): 1.0}  # past the best, so it is not looked at
    scores = worse
    assert find_best_cell(start, (1.5, 3.0, 5.0, 8.0), ("trailing",), score)[0].guidance_scale == 3.0
    assert find_best_cell(start, (1.5,), ("trailing",), score) == (start, [])
    # Without prompts that state anything, the nearer to real pictures the better.
    near, _ = find_best_cell(start, (1.5, 3.0), ("trailing",), lambda cell: {"kd": 5 - cell.guidance_scale})
    assert near.guidance_scale == 3.0


def test_protocols_that_differ_are_named(tmp_path):
    mine = {"n": 5, "extractor": {"name": "x", "sha256": "a"}}
    assert name_difference(mine, json.loads(json.dumps(mine))) is None
    assert (
        name_difference(mine, {**mine, "extractor": {"name": "x", "sha256": "b"}})
        == "extractor.sha256 is a here and b there"
    )
    assert not claim_report_folder(tmp_path / "out", mine)
    assert claim_report_folder(tmp_path / "out", mine)
    assert name_difference({"prompts_sha256": 1, "seed": 2}, {"prompts_sha256": 3, "seed": 4}).startswith("seed is 2")
    with pytest.raises(UserError, match="n is 6 here and 5 there"):
        claim_report_folder(tmp_path / "out", {**mine, "n": 6})
    rows = [{"sampler": "ddim", "model": "teacher"}, *({"sampler": "lcm", "model": name} for name in "aab")]
    (tmp_path / "results.json").write_text(json.dumps({"protocol": mine, "rows": rows}))
    assert list(read_rows_beside(tmp_path, mine)) == rows[1:3]  # not what stood beside it there
    with pytest.raises(UserError, match="same table: n is 7 here and 5 there"):
        list(read_rows_beside(tmp_path, {**mine, "n": 7}))
    with pytest.raises(UserError, match="holds no results"):
        list(read_rows_beside(tmp_path / "nowhere", mine))


def test_rosters():
    roster, longer = make_scenes_roster(10, 4, 2, 3), make_scenes_roster(20, 4, 2, 3)
    assert len(roster) == 20
    assert len(set(roster.seeds)) == 20
    assert roster.seeds[10:] == longer.seeds[20:]
    assert roster.prompts[:10] == longer.prompts[:10]
    assert len(set(roster.prompts[roster.repeated_part])) == 2
    assert roster.sha256 != longer.sha256
    assert make_captions_roster(["a", "b"], 1, 2).prompts == ["a", "b", "a", "a"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"n": 5}, "n is 5"), ({"steps": ()}, "steps are"), ({"steps": (51,)}, "1 to 50"), ({"spacings": ()}, "spacings"),
     ({"guidance_scale": (0.5,)}, "at least 1"), ({"n_unseen": -1}, "negative")],
)  # fmt: skip
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(UserError, match=said):
        Evaluate(**settings)


def test_the_demos_options_reach_its_scores(tmp_path):
    demo = dataclasses.replace(
        default_demo(), out=tmp_path, n=130, n_unseen=5, score_seed=11, guidance_scale=4.0, device="cpu"
    )
    evaluation = make_evaluation(demo)
    found = (evaluation.n, evaluation.n_unseen, evaluation.seed, evaluation.guidance_scale, evaluation.device)
    assert found == (130, 5, 11, (4.0,), "cpu")
    assert (evaluation.model, evaluation.out.parent) == (str(tmp_path / "model"), tmp_path)


def test_too_few_pictures_are_refused_before_the_folder_is_claimed(random_student, tmp_path, fewstep_command):
    for model in (random_student, put_in_cache(random_student / "model", tmp_path)):
        done = fewstep_command("evaluate", "--model", model, "--n", 127, "--out", tmp_path / "out")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "n is 127; the scenes reader has 64 features" in done.stderr
        assert not (tmp_path / "out").exists()


def test_killed_and_started_again_in_two_processes_it_gives_the_same_results(random_student, tmp_path, monkeypatch):
    fewer = {"fewstep.commands.evaluate.TEACHER_STEPS": 2, "fewstep.evaluate.scenes_bench.REFERENCE_SCENES": 256}
    settings = (
        "evaluate", "--model", random_student, "--n", 128, "--n-unseen", 0, "--n-tuning", 32, "--batch-size", 32,
        "--samplers", "unipc", "--steps", 1, "--spacings", "trailing", "--guidance-scale", 3, 5, "--n-repeated", 2,
    )  # fmt: skip

    def start(out, workers):
        one = {"OMP_NUM_THREADS": "1"}  # as every worker has it: more would round otherwise
        return Warm((*settings, "--out", out, "--workers", workers), constants=fewer, env=one)

    done = start(tmp_path / "whole", 1).wait()
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^about \d+ (?:s|min) in all, as the first pictures took \d+ (?:s|min)$", done.stderr, re.M)
    assert len(told) == 1
    for part, number in (("00000", signal.SIGTERM), ("00001", signal.SIGKILL)):
        cut = start(tmp_path / "cut", 2)
        until = time.monotonic() + 300
        while not list((tmp_path / "cut").glob(f"cells/teacher-*/part-{part}.*")) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(cut.process.pid, number)
        done = cut.wait()
        if number == signal.SIGTERM:
            assert done.returncode == 128 + number
            last = done.stderr.splitlines()[-1]
            assert last == ("fewstep: stopped; what is painted so far is kept, and the same command goes on from there")
    assert not (tmp_path / "cut" / "results.json").exists()
    for name, value in fewer.items():
        monkeypatch.setattr(name, value)
    with use_one_thread():  # here, where workers are forked from what has imported all
        main([*map(str, settings), "--out", str(tmp_path / "cut"), "--workers", "2"])
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut"))
    assert (one.pop("painted_by")["processes"], two.pop("painted_by")["processes"]) == (1, 2)
    for results in (one, two):
        for row in (*results["rows"], *results["tuning"]):
            assert row.pop("seconds_per_image") > 0
    assert one == two
    assert [row["sampler"] for row in one["rows"]] == ["teacher", "unipc", "lcm"]
    assert one["rows"][0]["to_teacher"] == 0
    assert one["rows"][0]["network_evaluations"] == 4
    page = (tmp_path / "cut" / "report.html").read_text()
    for said in ("data:image/png;base64,", "<svg", "prompts_sha256", one["protocol"]["prompts_sha256"], "UniPC"):
        assert said in page
    for outside in ('src="http', "<script", "<link"):
        assert outside not in page


def test_ones_own_pictures_by_ones_own_clip(random_student, clip, fewstep_command, tmp_path):
    """Captions and references from a folder, distances and the CLIP score from a CLIP that lies on the disk."""
    scenes = Scenes(9)
    (tmp_path / "own").mkdir()
    for i in range(40):
        scenes[i].image.save(tmp_path / "own" / f"{i:02}.png")
        (tmp_path / "own" / f"{i:02}.txt").write_text(scenes[i].caption)
    done = fewstep_command(
        "evaluate", "--model", random_student, "--data", tmp_path / "own", "--extractor", clip, "--clip", clip,
        "--n", 36, "--n-tuning", 20, "--batch-size", 20, "--samplers", "ddim", "--steps", 1, 2,
        "--guidance-scale", 3, 5, "--spacings", "trailing", "--out", tmp_path / "report",
        "--n-repeated", 2, "--workers", 1, constants={"fewstep.commands.evaluate.TEACHER_STEPS": 4},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    protocol = results["protocol"]
    assert (protocol["n"], protocol["reference"]["pictures"], protocol["prompts"]) == (36, 40, str(tmp_path / "own"))
    assert protocol["extractor"] == protocol["clip"]
    assert protocol["extractor"]["resize"] == "middle square to 28, Pillow's bicubic on floats, antialiased"
    assert [(row["sampler"], row["steps"]) for row in results["rows"]] == [
        ("teacher", 4), ("ddim", 1), ("ddim", 2), ("lcm", 1), ("lcm", 2),
    ]  # fmt: skip
    for row in results["rows"]:
        assert "prompt_accuracy" not in row
        assert row["clip_score_low"] < row["clip_score"] < row["clip_score_high"]
        assert row["fd"] > 0
    assert len({row["clip_score"] for row in results["rows"]}) == 5
    # Chosen by the kernel distance, of pictures that are not scored.
    for sampler, steps in (("ddim", 2), ("lcm", 1)):
        tried = [row for row in results["tuning"] if (row["sampler"], row["steps"]) == (sampler, steps)]
        (chosen,) = [row for row in results["rows"] if (row["sampler"], row["steps"]) == (sampler, steps)]
        assert chosen["guidance_scale"] == min(tried, key=lambda row: row["kd"])["guidance_scale"]
    assert "CLIP" in done.stdout


def test_prompts_and_real_pictures_from_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        shard(tmp_path / f"{number:05}.tar", [f"{number}{i}" for i in range(6)])
    found = material(SourceRequest(data=str(tmp_path / "{00000..00001}.tar"), resolution=16), n=8, n_tuning=6)
    assert len(found.real) == 12
    assert found.real[0].image.size == (16, 16)
    captions = [f"caption of {number}{i}" for number in range(2) for i in range(6)]
    assert found.scored.prompts == captions[:8]
    assert found.tuning.prompts == [*captions[8:], *captions[8:10]]  # none that is scored
    with pytest.raises(UserError, match="has 12 captions and n is 13"):
        material(SourceRequest(data=str(tmp_path / "{00000..00001}.tar"), resolution=16), n=13)


def test_links_among_the_pictures_are_followed_where_it_is_asked(tmp_path, monkeypatch, clip):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for i in range(20):
        place = tmp_path / ("data" if i < 10 else "away") / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(place)
        (tmp_path / f"data/{i}.txt").write_text(f"grey {i}")
        if i >= 10:
            (tmp_path / f"data/{i}.png").symlink_to(place)
    config = Evaluate(
        data=str(tmp_path / "data"), extractor=str(clip), n=20, n_tuning=20, device="cpu", out=tmp_path / "out"
    )
    with pytest.raises(UserError, match="has 10 captions and n is 20"):
        EvaluationStudio(config)
    assert len(EvaluationStudio(dataclasses.replace(config, follow_links=True)).found.real) == 20
