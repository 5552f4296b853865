"""The record of how an evaluation was made; tables of different protocols are not put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.documents import load_json
from fewstep.errors import UserError
from fewstep.files import is_vacant, remove_abandoned, write_whole
from fewstep.models.model_files import find_run

RESULTS_FILE = "results.json"


def name_difference(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Names the first field in which two protocols differ, with both values; returns None where they agree."""
    for name in sorted({*mine, *other}, key=lambda name: (name.endswith("sha256"), name)):  # causes before effects
        one, two = mine.get(name), other.get(name)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            if inner := name_difference(one, two):
                return f"{name}.{inner}"
        elif one != two:
            return f"{name} is {one} here and {two} there"
    return None


def read_rows_beside(folder: Path, protocol: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Reads the rows of an earlier report's model, not of those that stood beside it.

    Raises UserError where the report is none, or was made by another protocol.
    """
    file = folder / RESULTS_FILE if folder.is_dir() else folder
    try:
        results = load_json(file)
        rows, held = results["rows"], results["protocol"]
        if not isinstance(held, dict) or not all({"sampler", "model"} <= row.keys() for row in rows):
            raise ValueError("its rows are of other fields")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} holds no results of `fewstep evaluate`") from error
    if said := name_difference(protocol, held):
        raise UserError(f"{folder} cannot stand in the same table: {said}")
    of_models = [row for row in rows if row["sampler"] == "lcm"]
    yield from (row for row in of_models if row["model"] == of_models[0]["model"])


def _read_made_of(file: Path) -> Mapping[str, Any]:
    try:
        held = load_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); choose another --out, or remove it") from error
    return held if isinstance(held, dict) else {}


def claim_report_folder(out: Path, made_of: Mapping[str, Any]) -> bool:
    """Writes what the report is made of into `out`, or checks that it is what is there already, and says whether it is.

    Raises UserError naming the first field that differs.
    """
    file = out / "made_of.json"
    if file.exists():
        if said := name_difference(made_of, _read_made_of(file)):
            raise UserError(f"{out} holds another evaluation: {said}; choose another --out, or remove it")
        remove_abandoned(out)
        return True
    if not is_vacant(out):
        run = find_run(out)
        holds = "is not empty and holds no evaluation" if run is None else f"is {run.kind}"
        raise UserError(f"{out} {holds}; choose another --out")
    with write_whole(file) as draft:
        draft.write_text(json.dumps(made_of, indent=2) + "\n")
    return False
