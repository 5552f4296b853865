"""What the documents say is what the files beside them hold."""

import json
import re
from pathlib import Path

import pytest

from fewstep.cli import COMMANDS
from fewstep.evaluate.report import markdown_table
from fewstep.recipes.named import DISTILL, MEMORY_GIB

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("page", "scores"),
    [
        ("docs/demo.md", "demo/results.json"),
        ("docs/results.md", "studies/main-best.json"),
        ("docs/results.md", "studies/main-paper.json"),
        ("docs/scale.md", "scale.json"),
        ("docs/speed.md", "speed/train-scenes.json"),
        ("docs/speed.md", "speed/train-scenes-lora.json"),
        ("docs/speed.md", "speed/generate-scenes-1.json"),
        ("docs/speed.md", "speed/generate-scenes-16.json"),
        ("docs/speed.md", "speed/generate-sd15-256.json"),
        ("docs/teacher.md", "teacher/scores.json"),
    ],
)
def test_tables_are_the_scores(page, scores):
    text = (ROOT / page).read_text()
    for line in markdown_table(json.loads((ROOT / "docs" / scores).read_text())["rows"]):
        assert line in text


def test_the_exact_answers_are_the_scores():
    text = (ROOT / "docs/results.md").read_text()
    rows = json.loads((ROOT / "docs/studies/decay-exact.json").read_text())["rows"]
    assert len(rows) == 30
    names = ("guidance_scale", "later_guidance_scale", "guided_from")
    for setting in {tuple(row[name] for name in names) for row in rows}:
        found = {row["steps"]: row for row in rows if tuple(row[name] for name in names) == setting}
        said = {n: f"{100 * row['prompt_accuracy']:.1f} %, {row['fd']:.0f}" for n, row in found.items()}
        cells = [said.get(n, "") for n in (1, 2, 4, 8)]
        assert "| {:g} | {:g} | {} | ".format(*setting) + " | ".join(cells) + " |" in text


def test_the_studies_tables_are_their_scores():
    text = (ROOT / "docs/results.md").read_text()

    def cell(row):
        return f"{100 * row['prompt_accuracy']:.1f} %, {row['fd']:.1f}"

    rows = json.loads((ROOT / "docs/studies/solvers.json").read_text())["rows"]
    for solver, skip in {(row["solver"], row["skip"]) for row in rows}:
        own = [row for row in rows if (row["solver"], row["skip"]) == (solver, skip)]
        along = {row["updates"]: cell(row) for row in own if row["steps"] == 4}
        final = {row["steps"]: cell(row) for row in own if row["steps"] != 4}
        cells = [*(along[n] for n in (125, 250, 375, 500)), *(final[n] for n in (1, 2))]
        assert f"| {solver} | {skip} | {' | '.join(cells)} |" in text
    for study, names, steps in (
        ("factors", ["changed"], (1, 2, 4, 8)),
        ("along", ["teacher guided", "updates"], (1, 2, 4, 8)),
        ("guidance", ["model", "omega"], (1, 2, 4, 8, 50)),
        ("lora", ["trained", "updates", "training_seconds"], (1, 2, 4, 8)),
    ):
        rows = json.loads((ROOT / f"docs/studies/{study}.json").read_text())["rows"]
        for labels in {tuple(row[name] for name in names) for row in rows}:
            found = {row["steps"]: cell(row) for row in rows if tuple(row[name] for name in names) == labels}
            said = [f"{label:g}" if isinstance(label, float) else str(label) for label in labels]
            assert f"| {' | '.join([*said, *(found.get(n, '') for n in steps)])} |" in text, labels


def test_the_quickest_recipes_are_the_scores():
    text = (ROOT / "docs/speed.md").read_text()
    rows = json.loads((ROOT / "docs/studies/quality.json").read_text())["rows"]
    needed = {}
    for label, updates, evaluations in dict.fromkeys(
        (row["trained by"], row["updates"], row["network_evaluations"]) for row in rows
    ):
        own = {row["steps"]: row for row in rows if (row["trained by"], row["updates"]) == (label, updates)}
        cells = [f"{100 * own[n]['prompt_accuracy']:.1f} %, {own[n]['fd']:.1f}" for n in (1, 4)]
        assert f"| {label} | {updates} | {evaluations:g} | {' | '.join(cells)} |" in text
        if own[1]["prompt_accuracy"] >= 0.9 * 0.982 and own[4]["prompt_accuracy"] >= 0.95 * 0.982:
            needed.setdefault(label, evaluations)
    plain, recipe, quick, shrinking = needed.values()
    assert f"{plain:,.0f} evaluations" in text
    assert f"({recipe:,.0f})" in text
    assert f"and {quick:,.0f}, **{quick / plain:.2f} of them**" in text
    assert f"and {shrinking:,.0f}, though" in text


def test_latency_and_cold_starts_are_the_scores():
    rows = json.loads((ROOT / "docs/serving/latency.json").read_text())["rows"]
    said = " | ".join(f"{row['median_ms']:g} ({row['most_ms']})" for row in rows)
    assert f"| {said} |" in (ROOT / "docs/serving.md").read_text()
    four = next(row for row in rows if row["steps"] == 4)
    assert four["median_ms"] <= 200
    seconds = {
        row["command"]: row["seconds"] for row in json.loads((ROOT / "docs/speed/cold.json").read_text())["rows"]
    }
    told = f"`fewstep --help` {seconds['--help']:.2f} s, `fewstep generate` {seconds['generate']:.2f} s"
    assert told in (ROOT / "docs/speed.md").read_text()


def test_figures_in_words_are_the_scores():
    scores = json.loads((ROOT / "docs/teacher/scores.json").read_text())
    text = (ROOT / "docs/teacher.md").read_text()
    for name in ("reader_on_real_pictures", "reader_on_reconstructions"):
        assert f"{scores[name]:.2%}" in text


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    """The files that it links to, and the commands of its blocks, by names that the parser knows."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), target
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        for command in re.findall(r"^ *(?:.*bin/|python -m )?fewstep ([a-z-]+)", block, re.MULTILINE):
            assert command in {name.split()[0] for name in COMMANDS}, command


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_the_page_of_the_architecture_shows_what_is_there():
    page, package = (ROOT / "docs/architecture.md").read_text(), ROOT / "src" / "fewstep"
    tree = page[page.index("## The tree") : page.index("## Seven classes")]
    first_cells = [line.split("|")[1] for line in tree.splitlines() if line.startswith("| `")]
    listed = {name.rstrip("/") for cell in first_cells for name in re.findall(r"`([a-z_./]+)`", cell)}
    there = {path.name for path in package.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert there - listed <= {"__init__.py", "__main__.py"}
    assert listed <= there
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", page):
        assert any((base / path).exists() for base in (package, ROOT, *package.iterdir())), path


def test_the_walks_of_the_architecture_page_are_short_and_name_what_is_there():
    page = (ROOT / "docs/architecture.md").read_text()
    source = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    for walk in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE):
        lines = walk.splitlines()
        assert len(lines) <= 15
        for line in lines:
            name = re.sub(r"\W.*", "", line.split()[0].rpartition(".")[2])
            assert re.search(rf"\b(def|class) {name}\b|^{name} = ", source, re.MULTILINE) or name in COMMANDS, name


def test_figures_of_the_styles_are_the_scores():
    text = (ROOT / "docs/styles.md").read_text()
    held = {name: json.loads((ROOT / f"docs/styles/{name}.json").read_text()) for name in ("combining", "finetuning")}
    assert min(part["protocol"][f"{judge}_accuracy"] for part in held.values() for judge in ("probe", "reader")) >= 0.99

    def percent(name, **wanted):
        (row,) = [row for row in held[name]["rows"] if wanted.items() <= row.items()]
        return f"{100 * row['share_in_style']:.3g} %", f"{100 * row['prompt_accuracy']:.1f} %"

    both = {"model": "style + LCM-LoRA", "steps": 4, "lambda_2": 1.0}
    lines = {
        "teacher | 50": percent("combining", model="teacher"),
        "style LoRA alone, λ1 = 1 | 50": percent("combining", model="style LoRA"),
        "both, λ1 = 0.8, λ2 = 1 (the paper's) | 4": percent("combining", lambda_1=0.8, **both),
        "both, λ1 = 1, λ2 = 1 | 4": percent("combining", lambda_1=1.0, **both),
        "LCM as it was": percent("finetuning", model="LCM", steps=4),
        "LCM, fine-tuned": percent("finetuning", model="LCM, fine-tuned", steps=4),
        "LCM, fine-tuned at a fixed gap (`--shrink 0`: algorithm 4 as it is written)": percent(
            "finetuning", model="LCM, fine-tuned at a fixed gap", steps=4
        ),
        "style LoRA without guidance, 50 steps": percent("finetuning", model="style LoRA, no guidance"),
        "style LoRA + LCM-LoRA, λ1 = λ2 = 1": percent("finetuning", model="style + LCM-LoRA", steps=4),
    }
    for name, (share, accuracy) in lines.items():
        assert f"| {name} | {share} | {accuracy} |" in text, name


def test_memory_is_what_the_study_counted():
    rows = json.loads((ROOT / "docs/memory.json").read_text())
    found = {(row["recipe"], row["part"], row["checkpointing"]): row["gib"] for row in rows}
    page = (ROOT / "docs/memory.md").read_text()
    released = {name for name in DISTILL if not name.startswith("scenes")}
    assert MEMORY_GIB.keys() == released == {row["recipe"] for row in rows}
    for name in released:
        recipe = DISTILL[name]()
        part = recipe.batch_size // recipe.accumulation
        assert MEMORY_GIB[name] == found[name, part, recipe.gradient_checkpointing], name
        cells = [f"{found[name, p, c]:.1f}" for p in (part, 1) for c in (True, False)]
        assert f"| `{name}` | {part} | {' | '.join(cells)} |" in page


def test_the_lcm_lora_reaches_its_bar():
    """93 % of the teacher's prompt accuracy in 4 steps."""
    rows = json.loads((ROOT / "docs/styles/combining.json").read_text())["rows"]
    found = {(row["model"], row["steps"]): row["prompt_accuracy"] for row in rows}
    assert found["LCM-LoRA", 4] >= 0.93 * found["teacher", 50]


def test_every_row_of_compatibility_names_a_test_that_is_there():
    page = (ROOT / "docs/compatibility.md").read_text()
    source = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)\(", source, re.MULTILINE))
    assert sorted(set(re.findall(r"`(test_\w+)`", page)) - tests) == []
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| what", "| client |", "| card |"))
    ]
    assert len(rows) > 40
    assert [row for row in rows if "`test_" not in row.split("|")[-2]] == []


def test_the_closed_form_is_what_was_measured_and_any_step_stays_near_it():
    held = json.loads((ROOT / "docs/studies/methods-closed-form.json").read_text())["rows"]
    rows = [row for row in held if row["method"] == "any-step"]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    document = (ROOT / "docs/methods.md").read_text()
    for omega in (0.0, 2.0, 5.0):
        cells = []
        for steps in (1, 2, 4, 8):
            own = [row for row in rows if (row["omega"], row["steps"]) == (omega, steps)]
            assert max(row["energy"] for row in own) <= 10
            cells.append(f"{max(row['energy'] for row in own):.1f} / {max(row['rms'] for row in own):.2f}")
        assert f"| {omega:g} | {' | '.join(cells)} |" in document


def test_the_closed_form_on_a_flow_is_what_was_measured():
    rows = json.loads((ROOT / "docs/studies/methods-closed-form-flow.json").read_text())["rows"]
    document = (ROOT / "docs/families.md").read_text()
    for omega in (0.0, 2.0, 5.0):
        cells = {}
        for method in ("any-step", "lcm"):
            found = []
            for steps in (1, 2, 4, 8):
                own = [row for row in rows if (row["method"], row["omega"], row["steps"]) == (method, omega, steps)]
                assert {row["seed"] for row in own} == {0, 1, 2}
                found.append((max(row["energy"] for row in own), max(row["rms"] for row in own)))
            cells[method] = ", ".join(f"{energy:.1f} / {rms:.2f}" for energy, rms in found)
            assert method == "lcm" or all(energy <= 10 for energy, _ in found)
        assert f"| {omega:g} | {cells['any-step']} | {cells['lcm']} |" in document


@pytest.mark.parametrize("updates", [600, 800])
def test_the_methods_on_pictures_are_what_was_measured_and_any_step_stays_near_its_teacher(updates):
    held = json.loads((ROOT / "docs/studies/methods.json").read_text())["rows"]
    rows = [row for row in held if row["guidance_scale"] == 5]
    document = (ROOT / "docs/methods.md").read_text()
    (teacher,) = (row for row in rows if row["steps"] == 50)
    for model, title in (("teacher", "teacher, DDIM"), ("any-step", "`any-step`"), ("LCM", "`lcm`")):
        cells = []
        for steps in (1, 2, 3, 4, 6, 8):
            own = [
                row for row in rows
                if (row["model"], row["steps"], row["updates"]) == (model, steps, 0 if model == "teacher" else updates)
            ]  # fmt: skip
            assert len(own) == (1 if model == "teacher" else 3)
            mean = {name: sum(row[name] for row in own) / len(own) for name in ("prompt_accuracy", "fd", "to_teacher")}
            cells.append(f"{100 * mean['prompt_accuracy']:.1f}, {mean['fd']:.0f}, {mean['to_teacher']:.2f}")
            if model == "any-step":
                least = 0.0205 if updates == 800 else 0.005 if steps <= 4 else 0.025
                assert all(row["fd"] <= 1.15 * teacher["fd"] for row in own) or (updates, steps) == (800, 1)
                assert mean["fd"] <= 1.15 * teacher["fd"]
                assert mean["prompt_accuracy"] >= teacher["prompt_accuracy"] - least
        assert f"| {title} | {' | '.join(cells)} |" in document


def test_the_methods_of_one_training_are_what_was_measured():
    rows = json.loads((ROOT / "docs/studies/methods.json").read_text())["rows"]
    document = (ROOT / "docs/methods.md").read_text()
    tables = {
        (5, 0): {"PCM, 4 phases": "`pcm`, 4 phases", "TCD": "`tcd`", "guided-distill": "`guided-distill`, first stage"},
        (1.5, 1): {
            "teacher": "teacher, DDIM", "any-step": "`any-step`", "LCM": "`lcm`",
            "any-step, then TDM": "`any-step`, then `tdm`",
        },
    }  # fmt: skip
    for (guidance, digits), titles in tables.items():
        for model, title in titles.items():
            own = {row["steps"]: row for row in rows if (row["model"], row["guidance_scale"]) == (model, guidance)}
            cells = [
                f"{100 * own[n]['prompt_accuracy']:.1f}, {own[n]['fd']:.{digits}f}, {own[n]['to_teacher']:.2f}"
                for n in (1, 2, 3, 4, 6, 8)
            ]
            assert f"| {title} | {' | '.join(cells)} |" in document


def test_the_trained_flow_transformers_figures_are_its_scores():
    """And its student in 4 steps has at least 93 % of its accuracy."""
    rows = json.loads((ROOT / "docs/studies/flow-teacher.json").read_text())["rows"]
    document = (ROOT / "docs/families.md").read_text()
    for title, sampler in (("teacher, Euler", "euler"), ("`lcm`", "lcm")):
        own = {row["steps"]: row for row in rows if row["sampler"] == sampler}
        cells = [f"{100 * own[n]['prompt_accuracy']:.1f} %, {own[n]['fd']:.1f}" for n in (1, 2, 4, 8)]
        assert f"| {title} | {' | '.join(cells)} |" in document
    (best,) = (row for row in rows if row["sampler"] == "midpoint")
    assert f"{100 * best['prompt_accuracy']:.1f} % of 512" in document
    assert own[4]["prompt_accuracy"] >= 0.93 * best["prompt_accuracy"]
