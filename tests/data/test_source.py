"""Reports that add up, and the counting behind them."""

from __future__ import annotations

import pytest

from fewstep.data.sources.base import DroppedError, SourceReport, Tally
from fewstep.data.sources.filters import Reason


def report(used: int, **names: list[str]) -> SourceReport:
    spoken = {reason.replace("_", " "): found for reason, found in names.items()}
    dropped = {reason: len(found) for reason, found in spoken.items()}
    return SourceReport(found=used + sum(dropped.values()), used=used, dropped=dropped, names=spoken)


def test_a_report_that_does_not_add_up_cannot_be_made():
    SourceReport(found=3, used=1, dropped={"too large": 2}, names={})
    with pytest.raises(ValueError, match="found"):
        SourceReport(found=4, used=1, dropped={"too large": 2}, names={})


def test_the_line_counts_in_the_singular_and_in_the_plural():
    assert report(9, broken_picture=["a"], without_caption=["b", "c"]).format_summary() == (
        "data: 12 pictures found, 9 used, 3 dropped (1 broken picture, 2 without caption)"
    )
    assert report(1).format_summary() == "data: 1 picture found, 1 used, 0 dropped"
    assert report(0, damaged_shard=["x", "y"]).format_summary() == (
        "data: 2 pictures and other entries found, 0 used, 2 dropped (2 damaged shards)"
    )


def test_the_first_names_are_shown_and_the_others_counted():
    many = report(0, broken_picture=list("abcd"), without_caption=["e\n"])
    assert many.format_dropped() == ["  broken picture: a, b, c and 1 more", "  without caption: 'e\\n'"]
    few = SourceReport(found=1000, used=0, dropped={"broken picture": 1000}, names={"broken picture": ["a"]})
    assert few.format_dropped() == ["  broken picture: a and 999 more"]


def test_a_tally_keeps_every_count_and_the_first_names_in_the_order_of_the_reasons():
    tally = Tally(kept_names=2)
    for i in range(5):
        tally.drop("aesthetic score below 6", f"dull {i}")
    tally.drop(Reason.MISSING_SHARD, "gone")
    tally.add({str(Reason.BROKEN): 7}, {str(Reason.BROKEN): ["x", "y", "z"]})
    tally.drop(Reason.BROKEN, "later")
    tally.used = 4
    found = tally.report()
    assert list(found.dropped.items()) == [("broken picture", 8), ("missing shard", 1), ("aesthetic score below 6", 5)]
    assert found.names == {
        "broken picture": ["x", "y"], "missing shard": ["gone"], "aesthetic score below 6": ["dull 0", "dull 1"],
    }  # fmt: skip
    assert found.found == 18


def test_a_dropped_picture_is_named_in_one_line():
    assert str(DroppedError(Reason.BROKEN, "a\n.png")) == "'a\\n.png': broken picture"
    assert str(DroppedError("too dull")) == "too dull"
