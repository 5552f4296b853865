"""Solvers of the PF-ODE by name: each is a file in this folder that ends in a `Solver`, and a line in SOLVERS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fewstep.diffusion.solvers.base import Field, Solver
from fewstep.diffusion.solvers.ddim import DDIM
from fewstep.diffusion.solvers.dpm_solver import DPM_SOLVER_2
from fewstep.diffusion.solvers.dpm_solver_pp import DPM_SOLVER_PP_2S
from fewstep.diffusion.solvers.midpoint import MIDPOINT

__all__ = ["DDIM", "DPM_SOLVER_2", "DPM_SOLVER_PP_2S", "MIDPOINT", "SOLVERS", "Field", "Solver", "SolverName"]

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (DDIM, DPM_SOLVER_2, DPM_SOLVER_PP_2S, MIDPOINT)}
"""Every solver; tests, tables, baselines and the command line read it."""

if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = Literal[tuple(SOLVERS)]  # what the command line allows
