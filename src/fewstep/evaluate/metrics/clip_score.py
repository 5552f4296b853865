"""CLIP score: how well a picture and its prompt go together (arXiv 2104.08718)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fewstep.evaluate.bench import Bench, Metric, Seen
from fewstep.evaluate.bootstrap import bootstrap_interval


def clip_scores(seen: Seen) -> Tensor | None:
    """100·max(cos(picture, prompt), 0) `[b]`."""
    clip = seen.bench.clip
    if clip is None or clip.text_features is None:
        return None
    texts = clip.text_features([seen.bench.roster.prompts[i] for i in seen.rows])
    return 100 * functional.cosine_similarity(clip.features(seen.pictures), texts).clamp(min=0)


def clip_score(scores: Tensor, bench: Bench) -> dict[str, float | None]:
    """The mean, with its 95 % bootstrap interval."""
    main = scores[bench.roster.main_part]
    low, high = bootstrap_interval(main)
    return {"clip_score": float(main.double().mean()), "clip_score_low": low, "clip_score_high": high}


METRICS = (Metric(clip_scores, clip_score),)
