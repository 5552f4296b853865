"""How true a picture is to the one that the teacher paints from the same noise."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric, keep_latents
from fewstep.evaluate.columns import Column

DISTANCE = Column(
    "to_teacher",
    "Distance of a picture's latent from the teacher's own of the same noise. Less is truer to it.",
    heading="to T",
    curve_label="distance to the teacher's pictures",
)


def compute_distance(latents: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes the root mean square difference of the latents, whose deviation is about 1: so two unrelated pictures
    differ by about √2, and a picture from itself by 0."""
    if bench.teacher_latents is None:
        return {}
    difference = (latents - bench.teacher_latents)[bench.roster.main_part].double()
    return {"to_teacher": float(difference.square().flatten(1).mean(1).sqrt().mean())}


METRICS = (Metric(keep_latents, compute_distance, (DISTANCE,)),)
