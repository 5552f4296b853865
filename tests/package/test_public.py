"""What is public in Python: importing `fewstep` alone is enough for it."""

import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fewstep


def test_every_public_name_is_there_and_documented():
    for name in fewstep.__all__:
        found = getattr(fewstep, name)
        assert name == "__version__" or inspect.getdoc(found), name
    assert not hasattr(fewstep, "nonsense")


def test_importing_it_imports_no_torch():
    code = "import sys, fewstep; fewstep.UserError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_evaluate_can_be_called_whatever_was_imported_before(tmp_path):
    """The function has the name of a folder, which Python puts in its place once a file of it is imported."""
    config = fewstep.configure("evaluate", model=tmp_path / "nothing", out=tmp_path / "report")
    import_module("fewstep.evaluate.config")
    for evaluate in (fewstep.evaluate, fewstep.__getattr__("evaluate")):
        with pytest.raises(fewstep.UserError, match="nothing"):
            evaluate(config)
    assert import_module("fewstep.evaluate.config").Evaluate is type(config)


@pytest.mark.parametrize(
    ("command", "recipe", "settings", "message"),
    [
        ("distill", "scenes", {"stepz": 3}, "sets stepz, which Distill does not have"),
        ("distill", "scenes", {"steps": "3"}, "steps is '3'; expected a whole number"),
        ("distill", "scenes", {"steps": 0}, "steps is 0; it must be at least 1"),
        ("distill", "scenez", {}, "did you mean scenes?"),
        ("paint", "scenes", {}, "'paint' has no configuration here"),
        ("finetune", "scenes", {"solver": "ddim"}, "sets solver, which Finetune does not have"),
    ],
)
def test_what_cannot_be_configured_is_said(command, recipe, settings, message):
    with pytest.raises(fewstep.UserError, match=message.replace("?", r"\?")):
        fewstep.configure(command, recipe, **settings)


def test_a_configuration_takes_what_people_write():
    config = fewstep.configure("distill", "scenes-lora", out="runs/x", guidance_range=(4, 4), guidance_scale=4)
    assert (config.out.name, config.guidance_range, config.lora_rank) == ("x", (4.0, 4.0), 64)
    assert fewstep.configure("evaluate", steps=[1, 2]).steps == (1, 2)
    assert fewstep.configure("combine", lora=["a:1"]).lora == ("a:1",)
    assert fewstep.configure("prepare", std=True).std is True
    with pytest.raises(fewstep.UserError, match="one process from Python"):
        fewstep.distill(fewstep.configure("distill", processes=2))


def test_a_report_finds_its_rows(tmp_path):
    report = fewstep.Report(tmp_path, {"rows": [{"sampler": "lcm", "steps": 1}, {"sampler": "lcm", "steps": 2}]})
    assert report.find_row("lcm", 2) is report.rows[1]
    assert report.page == tmp_path / "report.html"
    with pytest.raises(KeyError, match="no row of lcm in 3 steps"):
        report.find_row("lcm", 3)


def test_a_training_is_painted_with_and_combined(random_teacher, tmp_path):
    settings = {"teacher": str(random_teacher), "batch_size": 4, "pictures": 24, "sample_every": 0, "device": "cpu"}
    run = fewstep.distill(
        fewstep.configure(
            "distill", "scenes-lora", steps=2, lora_rank=2, log_every=1, out=tmp_path / "lora", **settings
        )
    )
    assert [line["step"] for line in run.read_log()] == [1, 2]
    bare = fewstep.load(random_teacher, loras=[f"{run.model}:0.5"], device="cpu")
    assert len(bare("a red star", steps=1)) == 1
    with pytest.raises(fewstep.UserError, match="is a teacher"):
        fewstep.load(random_teacher)
    both = fewstep.combine(
        fewstep.configure("combine", base=str(random_teacher), lora=[str(run.model)], out=tmp_path / "both")
    )
    assert (both / "pytorch_lora_weights.safetensors").exists()
    assert json.loads((run.model / "fewstep.json").read_text())["steps"] == 2


PUBLIC = {
    "Pipeline", "Progress", "Report", "Run", "UserError", "__version__", "combine", "configure", "distill", "evaluate",
    "finetune", "load", "prepare", "train_lora",
}  # fmt: skip


def test_the_public_names_are_these_and_the_page_has_each():
    """Whoever adds one, or takes one away, says so here and in docs/reference/python.md."""
    assert set(fewstep.__all__) == PUBLIC
    page = (Path(__file__).parents[2] / "docs" / "reference" / "python.md").read_text()
    assert [name for name in PUBLIC - {"__version__"} if not re.search(rf"^::: fewstep\S*\.{name}$", page, re.M)] == []


def configure_small(out, **settings):
    small = {"steps": 3, "batch_size": 2, "pictures": 8, "log_every": 2, "sample_every": 0, "device": "cpu"}
    return fewstep.configure("distill", "scenes-lora", lora_rank=2, out=out, **small | settings)


def test_a_training_tells_of_every_update_and_quiet_it_writes_nothing_else(random_teacher, tmp_path, capfd):
    heard = []

    def hear(progress):
        heard.append(progress)
        print(f"heard {progress.work}")

    fewstep.distill(configure_small(tmp_path / "run", teacher=str(random_teacher)), progress=hear, quiet=True)
    shown = capfd.readouterr()
    assert set(shown.out.splitlines()) == {"heard encoding", "heard distil"}
    assert shown.err == ""
    assert [(each.done, each.total) for each in heard if each.work == "encoding"] == [(8, 8)]
    updates = [each for each in heard if each.work == "distil"]
    assert [(each.done, each.total) for each in updates] == [(1, 3), (2, 3), (3, 3)]
    assert ["loss" in each.values for each in updates] == [False, True, True]


def test_what_the_listener_raises_ends_a_run_that_goes_on(random_teacher, tmp_path, capfd):
    config = configure_small(tmp_path / "run", teacher=str(random_teacher), checkpoint_every=1)

    def stop(progress):
        if progress.work == "distil":
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        fewstep.distill(config, progress=stop, quiet=True)
    heard = []
    fewstep.distill(config, progress=heard.append, quiet=True)
    assert [each.done for each in heard if each.work == "distil"] == [2, 3]
    assert capfd.readouterr().err == ""
    fewstep.distill(config)
    assert "is finished" in capfd.readouterr().out  # nothing stays redirected


def test_prepare_and_painting_tell_how_far_they_are(random_teacher, tmp_path, capfd):
    heard = []
    config = fewstep.configure(
        "prepare", model=str(random_teacher), data="scenes", pictures=4, part=2, workers=1, out=tmp_path / "latents",
        device="cpu",
    )  # fmt: skip
    fewstep.prepare(config, progress=heard.append, quiet=True)
    assert [(each.work, each.done, each.total) for each in heard] == [("preparation", 1, 2), ("preparation", 2, 2)]
    pipe = fewstep.load(device="cpu")
    steps = []
    with_it = pipe(["a red star"] * 3, steps=2, batch_size=2, on_step=lambda *each: steps.append(each))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = pipe(["a red star"] * 3, steps=2, batch_size=2)
    assert [a.tobytes() for a in alone] == [a.tobytes() for a in with_it]
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
