"""Buckets of aspect ratios: which there are, which is a picture's, and the order of batches of one each."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data.buckets import BucketedOrder, describe_counts, find_buckets, list_buckets
from fewstep.data.order import MixedSampleOrder, SampleOrder

SDXL = """512 2048, 512 1984, 512 1920, 512 1856, 576 1792, 576 1728, 576 1664, 640 1600, 640 1536, 704 1472, 704 1408,
704 1344, 768 1344, 768 1280, 832 1216, 832 1152, 896 1152, 896 1088, 960 1088, 960 1024, 1024 1024, 1024 960, 1088 960,
1088 896, 1152 896, 1152 832, 1216 832, 1280 768, 1344 768, 1408 704, 1472 704, 1536 640, 1600 640, 1664 576, 1728 576,
1792 576, 1856 512, 1920 512, 1984 512, 2048 512"""
"""Height and width, of arXiv 2307.01952, appendix I."""
seeds = st.integers(0, 2**63 - 1)
batches = st.integers(1, 9)


@st.composite
def pictures(draw):
    """Sizes of shards, repeats, and a bucket for each picture: some hold few, and some shards none."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum))
    repeats = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    count = sum(sizes)
    buckets = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return tuple(sizes), tuple(repeats), np.array(buckets)


def law(*strategies, examples=50):
    return lambda test: settings(deadline=None, max_examples=examples)(given(*strategies)(test))


def make(seed, batch, given):
    sizes, repeats, buckets = given
    times = np.repeat(repeats, sizes)
    return BucketedOrder(seed, batch, sizes, buckets, repeats), buckets, times


def test_the_buckets_of_1024_pixels_are_stable_diffusion_xls():
    table = {tuple(map(int, row.split())) for row in SDXL.replace("\n", " ").split(",")}
    assert len(table) == 40
    assert set(list_buckets(1024, 8)) == table | {(1344, 704)}
    assert list_buckets(1024, 8) == list_buckets(1024, 16) == list_buckets(1024, 32)


@law(st.integers(1, 300), st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_buckets_have_nearly_the_squares_area(units, unit):
    side = units * unit
    found = list_buckets(side, unit)
    assert (side, side) in found
    assert len(set(found)) == len(found)
    for height, width in found:
        assert height % unit == width % unit == 0
        assert 0.9 * side**2 < height * width <= side**2
        assert side <= 2 * min(height, width)
        assert (width, height) in found


def test_the_bucket_is_that_of_the_nearest_aspect():
    buckets = list_buckets(1024, 8)

    def find(*sizes):
        return [buckets[i] for i in find_buckets(np.array(sizes), buckets)]

    assert find((1024, 1024), (5, 5), (4000, 3000), (3000, 4000), (1920, 1080), (9000, 10), (10, 9000)) == [
        (1024, 1024), (1024, 1024), (896, 1152), (1152, 896), (768, 1344), (512, 2048), (2048, 512),
    ]  # fmt: skip
    assert find((0, 0)) == [(1024, 1024)]
    for height, width in buckets:
        assert find((3 * width, 3 * height)) == [(height, width)]
    sizes = np.random.default_rng(0).integers(1, 5000, (500, 2))
    for (width, height), (high, wide) in zip(sizes, find(*sizes), strict=True):
        off = abs(np.log(width / height) - np.log(wide / high))
        assert off <= min(abs(np.log(width / height) - np.log(w / h)) for h, w in buckets) + 1e-9


@law(seeds, batches, pictures(), st.integers(0, 60))
def test_every_batch_is_of_one_bucket(seed, batch, given, update):
    order, buckets, _ = make(seed, batch, given)
    assert len(set(buckets[order(range(update * batch, (update + 1) * batch))])) == 1


@law(seeds, batches, pictures(), st.integers(1, 4))
def test_no_picture_is_left_out_of_an_epoch_and_none_comes_twice(seed, batch, given, epochs):
    """Each bucket's pictures, in the order in which they come, are whole epochs, each picture its number of times; and
    after an epoch of all, no bucket is behind, nor ahead by a whole batch."""
    order, buckets, times = make(seed, batch, given)
    ends = [sum(-(-e * int(times[buckets == b].sum()) // batch) for b in set(buckets)) for e in range(epochs + 1)]
    found = order(range(ends[-1] * batch))
    for bucket in set(buckets):
        expected = collections.Counter(dict(enumerate(times * (buckets == bucket))))
        length = int(times[buckets == bucket].sum())
        own = found[buckets[found] == bucket]
        for epoch in range(epochs):
            assert collections.Counter(own[epoch * length : (epoch + 1) * length]) == +expected
        for epoch, end in enumerate(ends):
            come = int((buckets[found[: end * batch]] == bucket).sum())
            assert epoch * length <= come < epoch * length + batch


@law(seeds, batches, pictures(), st.integers(0, 300), st.integers(1, 40))
def test_the_order_does_not_depend_on_where_it_begins_or_how_a_batch_is_split(seed, batch, given, first, length):
    order, *_ = make(seed, batch, given)
    counters = range(first, first + length)
    assert order(counters).tolist() == [order([i])[0] for i in counters]
    assert order(counters).tolist() == make(seed, batch, given)[0](range(first + length))[first:].tolist()


@law(seeds, batches, pictures(), st.integers(0, 100))
def test_in_one_bucket_the_order_is_that_without(seed, batch, given, first):
    sizes, repeats, buckets = given
    counters = range(first, first + 50)
    order = BucketedOrder(seed, batch, sizes, np.zeros_like(buckets), repeats)
    assert order(counters).tolist() == SampleOrder(seed, sizes, repeats=repeats)(counters).tolist()


def test_the_buckets_of_batches_are_mixed_and_others_in_every_epoch():
    buckets = np.arange(600) % 3
    order = BucketedOrder(1, 4, (600,), buckets)
    first, second = (buckets[order(range(start, start + 600, 4))].tolist() for start in (0, 600))
    assert first != second
    assert collections.Counter(first) == collections.Counter(second) == {0: 50, 1: 50, 2: 50}
    assert 80 < sum(one != other for one, other in itertools.pairwise(first)) < 120


def test_shards_are_gone_through_together():
    """Of 160 shards, a tenth of an epoch touches few, whatever the bucket: so that each is fetched about once."""
    rng = np.random.default_rng(0)
    order = BucketedOrder(3, 4, (20,) * 160, rng.integers(0, 3, 3200))
    touched = [len(set((order(range(at, at + 320)) // 20).tolist())) for at in range(0, 3200, 320)]
    assert max(touched) <= 50


@pytest.mark.parametrize("batch", [1, 5])
def test_a_mixture_has_batches_of_one_source_and_one_bucket(batch):
    buckets = [np.arange(70) % 3, np.arange(40) % 2]
    orders = tuple(BucketedOrder(i, batch, (len(each),), each) for i, each in enumerate(buckets))
    mixed = MixedSampleOrder(7, orders, (1.0, 3.0), batch)
    found = mixed(range(1000 * batch)).reshape(-1, batch)
    sources = found >= 70
    assert (sources == sources[:, :1]).all()
    assert int(sources[:, 0].sum()) == 750
    for i, order in enumerate(orders):
        own = found[sources[:, 0] == bool(i)] - 70 * i
        assert own.ravel().tolist() == order(range(own.size)).tolist()
    assert mixed(range(3, 40)).tolist() == [mixed([i])[0] for i in range(3, 40)]


def test_counts_are_told():
    assert describe_counts({(64, 64): 12, (48, 80): 3}, 4) == [
        "buckets, width × height: 80x48: 3, 64x64: 12",
        "warning: 80x48 have fewer pictures than an update takes (4), so it sees some several times; give more "
        "pictures, or a smaller --batch-size",
    ]
    assert len(describe_counts({(64, 64): 12, (48, 80): 4}, 4)) == 1
