"""Solvers of the PF-ODE by name: DDIM, and the others, each a file in this folder that ends in its SOLVER, and a
line in _FILES."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from fewstep.diffusion.solvers.base import DDIM, Solver

_FILES = (
    "dpm_solver",
    "dpm_solver_pp",
    "midpoint",
)
_FOUND: list[Solver] = [DDIM, *(importlib.import_module(f"{__name__}.{file}").SOLVER for file in _FILES)]
SOLVERS: dict[str, Solver] = {solver.name: solver for solver in _FOUND}
"""Every solver; the command line and the tests read it."""

if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = Literal[tuple(SOLVERS)]  # what the command line allows
