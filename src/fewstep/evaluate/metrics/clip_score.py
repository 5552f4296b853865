"""CLIP score: how well a picture and its prompt go together (arXiv 2104.08718)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fewstep.evaluate.bench import Bench, Metric, PaintedBatch
from fewstep.evaluate.bootstrap import bootstrap_interval
from fewstep.evaluate.columns import Column

SCORE = Column(
    "clip_score",
    "100 times the cosine of CLIP's features of picture and prompt. More is better.",
    heading="CLIP",
    better="more",
    curve_label="CLIP score",
)


def score_with_clip(batch: PaintedBatch) -> Tensor | None:
    """Returns 100·max(cos(picture, prompt), 0) `[b]`."""
    clip = batch.bench.clip
    if clip is None or clip.text_features is None:
        return None
    texts = clip.text_features([batch.bench.roster.prompts[i] for i in batch.rows])
    return 100 * functional.cosine_similarity(clip.features(batch.pictures), texts).clamp(min=0)


def compute_mean_score(scores: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes the mean, with its 95 % bootstrap interval."""
    main = scores[bench.roster.main_part]
    low, high = bootstrap_interval(main)
    return {"clip_score": float(main.double().mean()), "clip_score_low": low, "clip_score_high": high}


METRICS = (Metric(score_with_clip, compute_mean_score, (SCORE,)),)
