"""Limits on scores: which side of them is wanted, where scores are found, and what becomes of missing ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fewstep.data.sources.filters import NO_SCORES, SCORES, Filters, read_scores
from fewstep.errors import UserError


def refused(filters: Filters, *rows: dict[str, object]) -> dict[str, list[int]]:
    scores = np.array([read_scores(row) for row in rows], dtype=float).reshape(-1, len(SCORES))
    return {
        reason: np.flatnonzero(mask).tolist() for reason, mask in filters.find_refused(scores, "row {}".format).items()
    }


@pytest.mark.parametrize(
    ("limit", "name", "values", "reason"),
    [
        ({"min_aesthetic": 6}, "aesthetic", (5.99, 6, 9), "aesthetic score below 6"),
        ({"max_watermark": 0.8}, "pwatermark", (0.81, 0.8, 0), "watermark score above 0.8"),
        ({"max_unsafe": 0.5}, "punsafe", (1, 0.5, 0.1), "unsafe score above 0.5"),
        ({"min_similarity": 0.3}, "similarity", (0.2, 0.3, 0.4), "similarity below 0.3"),
    ],
)
def test_a_limit_refuses_what_is_beyond_it_and_only_when_it_is_set(limit, name, values, reason):
    rows = [{name: value} for value in values]
    assert refused(Filters(**limit), *rows) == {reason: [0]}
    assert refused(Filters(), *rows, {}) == {}


def test_sides_are_compared_whichever_is_the_shorter():
    rows = [{"width": 600, "height": 512}, {"width": 511, "height": 900}, {"width": 900, "height": 511}]
    assert refused(Filters(min_side=512), *rows) == {"shorter side below 512": [1, 2]}
    rows = [{"width": 200, "height": 100}, {"width": 201, "height": 100}, {"width": 100, "height": 300}]
    assert refused(Filters(max_aspect=2), *rows) == {"aspect ratio above 2": [1, 2]}
    assert Filters(min_side=100).refuse_size((100, 400)) is None
    assert Filters(min_side=100, min_aesthetic=5).refuse_size((99, 400)) == "shorter side below 100"
    assert Filters(max_aspect=3).refuse_size((100, 400)) == "aspect ratio above 3"


def test_a_picture_is_refused_for_one_reason_the_first():
    filters = Filters(min_aesthetic=5, max_watermark=0.5, min_side=100)
    rows = [{"aesthetic": 1, "pwatermark": 1, "width": 1, "height": 1}, {"aesthetic": 9, "width": 9, "height": 9}]
    assert refused(filters, *rows) == {"aesthetic score below 5": [0], "without watermark score": [1]}


@pytest.mark.parametrize(
    ("score", "names"),
    [
        ("aesthetic", ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2")),
        ("watermark", ("pwatermark", "watermark", "watermark_score")),
        ("unsafe", ("punsafe", "unsafe", "nsfw_score_opennsfw2")),
        ("similarity", ("similarity", "clip_similarity_vitb32", "clip_similarity_vitl14")),
        ("width", ("width", "original_width")),
    ],
)
def test_scores_are_found_under_their_usual_names(score, names):
    place = list(SCORES).index(score)
    for name in names:
        assert read_scores({name: 0.25})[place] == 0.25
    assert read_scores({name: i for i, name in enumerate(names)})[place] == 0
    assert read_scores({names[0]: None, names[1]: 7})[place] == 7


def test_a_score_may_be_written_as_text_or_truth_and_is_missing_otherwise():
    assert read_scores({"aesthetic": "6.5", "watermark": True})[:2] == (6.5, 1.0)
    for nothing in (None, "high", math.nan, math.inf, "", [], {}, 10**400):
        assert math.isnan(read_scores({"aesthetic": nothing})[0])
    assert all(map(math.isnan, NO_SCORES))


def test_what_lacks_a_score_is_rejected_accepted_or_an_error_as_one_asks():
    rows = [{"aesthetic": 9}, {}, {"aesthetic": 1}]
    dull = {"aesthetic score below 5": [2]}
    assert refused(Filters(min_aesthetic=5), *rows) == {"without aesthetic score": [1], **dull}
    assert refused(Filters(min_aesthetic=5, missing="accept"), *rows) == dull
    with pytest.raises(UserError, match="row 1 has no aesthetic score in its metadata; add it, or"):
        refused(Filters(min_aesthetic=5, missing="error"), *rows)


def test_impossible_limits_are_refused():
    wrongs: list[tuple[dict[str, object], str]] = [
        ({"min_side": 0}, "at least 1"),
        ({"max_aspect": 0.5}, "at least 1"),
        ({"max_aspect": math.nan}, "at least 1"),
        ({"missing": "maybe"}, "reject, accept or error"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(UserError, match=said):
            Filters(**wrong)
