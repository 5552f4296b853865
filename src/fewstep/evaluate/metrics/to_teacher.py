"""How true a picture is to the one that the teacher paints from the same noise."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric, latents


def distance_to_teacher(latents: Tensor, bench: Bench) -> dict[str, float | None]:
    """Root mean square difference of the latents, whose deviation is about 1: so two unrelated pictures differ by about
    √2, and a picture from itself by 0."""
    if bench.teacher_latents is None:
        return {}
    difference = (latents - bench.teacher_latents)[bench.roster.main_part].double()
    return {"to_teacher": float(difference.square().flatten(1).mean(1).sqrt().mean())}


METRICS = (Metric(latents, distance_to_teacher),)
