"""The walls of the house: what import-linter cannot say of them."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "fewstep"
FAMILY_WORDS = re.compile(
    r"\.unet\b|[\"']unet[\"']|text_encoder_2|tokenizer_2|time_cond_proj_dim|\b(down|up)_blocks\b|\bmid_block\b"
)
"""What only a family's own file may say."""
EXCEPT = {"models/scenes_model.py", "serve/lora_tags.py", "models/options.py"}
"""The file that builds the bundled teacher, before it is a model; the tags in which A1111 says the word; and the option
that people know as --unet."""
MOST_FILES, MOST_LINES = 59, 8050
"""What `fewstep distill` may import of the package, wherever the import stands."""


@functools.cache
def imported_files(file: Path) -> set[Path]:
    """Returns the package's files that a file imports, in functions too, but not for the type checker alone."""
    found: set[Path | None] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fewstep"):
            # A name out of a package may be a file of its own.
            found |= {file_of(f"{node.module}.{each.name}") or file_of(str(node.module)) for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {file_of(each.name) for each in node.names if each.name.startswith("fewstep")}
    return {each for each in found if each is not None}


def file_of(name: str) -> Path | None:
    """Returns the file of a module, if it is one."""
    path = ROOT.parent / name.replace(".", "/")
    return next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.exists()), None)


def closure(file: Path) -> set[Path]:
    """Returns a file with all that it imports, and what that imports."""
    seen: set[Path] = set()
    waiting = {file}
    while waiting:
        one = waiting.pop()
        seen.add(one)
        waiting |= imported_files(one) - seen
    return seen


def test_what_a_distillation_imports_stays_small():
    files = closure(ROOT / "commands" / "distill.py")
    assert len(files) <= MOST_FILES
    assert sum(len(file.read_text().splitlines()) for file in files) <= MOST_LINES


def test_training_imports_no_kind_of_what_is_chosen_and_no_evaluation():
    names = {file.relative_to(ROOT).as_posix() for file in closure(ROOT / "commands" / "distill.py")}
    assert not [name for name in names if name.startswith("evaluate/")]
    kinds = {
        "runs/picture_material.py",
        "runs/latent_material.py",
        "runs/trajectories.py",
        "train/whole_weights.py",
        "train/lora_weights.py",
        "train/walk_task.py",
        "train/kept_task.py",
        "data/sources/picture_files.py",
        "data/sources/folder.py",
        "data/shards/source.py",
        "data/worlds/scenes.py",
    }
    assert all((ROOT / kind).exists() for kind in kinds)
    assert not kinds & names
    assert not [name for name in names if name.startswith("models/families/") and name != "models/families/__init__.py"]


def test_only_a_familys_file_knows_how_a_family_looks():
    said = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in sorted(ROOT.rglob("*.py"))
        if "families" not in file.parts and file.relative_to(ROOT).as_posix() not in EXCEPT
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if FAMILY_WORDS.search(line)
    ]
    assert said == []


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(file.relative_to(ROOT).as_posix())
    twice = {name: files for name, files in places.items() if len(files) > 1}
    # Each is a file of its own beside an export, which diffusers loads under the name that the index gives.
    assert twice == {"AnyStepPipeline": ["models/families/any_step_flow.py", "models/families/any_step_pipeline.py"]}


def test_no_two_files_import_each_other():
    files = sorted(ROOT.rglob("*.py"))
    circles = [file.name for file in files if any(file in closure(other) for other in imported_files(file))]
    assert circles == []
