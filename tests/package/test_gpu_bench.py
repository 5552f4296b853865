"""The kit for a GPU that is at hand for minutes: all of it runs on a CPU, and no step costs the others anything."""

import json
import subprocess
import sys
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"
sys.path.insert(0, str(STUDIES))
from gpu_bench import LIMITS  # noqa: E402  # a study, which no package has


def run_kit(*arguments):
    done = subprocess.run(
        ["bash", str(STUDIES / "gpu_bench.sh"), "--minutes", "60", *map(str, arguments)],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def read(folder, step):
    return json.loads((folder / f"{step}.json").read_text())


def test_the_rehearsal_runs_every_step(tmp_path):
    status, said = run_kit("--rehearse", "--out", tmp_path, "--limit", "600")
    assert status == 0, said
    found = {step: read(tmp_path, step) for step in LIMITS}
    assert all(each["ok"] and each["rehearsal"] for each in found.values())
    assert [row["step"] for row in json.loads((tmp_path / "index.json").read_text())["steps"]] == list(LIMITS)
    assert all((tmp_path / f"{step}.log").exists() for step in LIMITS)
    for step, each in found.items():
        result = each["result"]
        if step.startswith("train-"):
            assert len(result["rows"]) == (1 if "flux" in step else 2)
            assert all(row["gflop_per_image"] > 0 and row["share_of_matrix_rate"] > 0 for row in result["rows"])
        if step.startswith("paint-"):
            names = [row["engine"] for row in result["rows"]]
            compiled = step.endswith(("compiled", "graphs"))
            assert names == (
                ["diffusers", "diffusers, compiled", "torch", "torch, compiled"] if compiled else ["diffusers", "torch"]
            )
            assert result["gflop_per_image"] > 0
    assert found["generate-fp32"]["result"]["most_grey_levels_off"] == 0
    assert found["exactness"]["result"]["as_it_is"] == {"same": True, "most_apart": 0.0}


def test_a_step_that_fails_or_takes_too_long_says_so_and_the_others_run(tmp_path):
    status, said = run_kit("--out", tmp_path, "--device", "nonsense", "--only", "update-sd15", "machine")
    assert status == 2, said
    assert "device" in read(tmp_path, "machine")["error"]
    assert "nonsense" in read(tmp_path, "update-sd15")["error"]
    status, said = run_kit("--rehearse", "--out", tmp_path, "--only", "exactness", "--limit", "0.01")
    assert status == 1, said
    assert read(tmp_path, "exactness") == {"step": "exactness", "ok": False, "error": "not done within 0.01 s"}
    rows = json.loads((tmp_path / "index.json").read_text())["steps"]
    assert [row["ok"] for row in rows] == [False, False, False]
