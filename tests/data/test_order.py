"""The order of pictures: each once an epoch, pure in the position, and without a table of all of them."""

import collections
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data.order import MixedSampleOrder, Permutation, SampleOrder
from fewstep.errors import UserError

seeds = st.integers(-(2**63), 2**63 - 1)
shards = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum).map(tuple)


def law(*strategies, examples=50):
    return lambda test: settings(deadline=None, max_examples=examples)(given(*strategies)(test))


@law(seeds, st.integers(1, 300))
def test_a_permutation_is_one(key, size):
    assert sorted(Permutation(key, size)(range(size))) == list(range(size))


def test_every_permutation_of_four_is_about_as_frequent():
    found = collections.Counter(tuple(Permutation(key, 4)(range(4))) for key in range(12_000))
    assert len(found) == 24
    chi_square = sum((count - 500) ** 2 / 500 for count in found.values())
    assert chi_square < 50  # 23 degrees of freedom: one in a thousand is beyond


@law(seeds, shards, st.integers(1, 5), st.integers(0, 3))
def test_each_picture_comes_once_an_epoch(seed, sizes, window, epoch):
    size = sum(sizes)
    order = SampleOrder(seed, sizes, window)
    assert sorted(order(range(epoch * size, (epoch + 1) * size))) == list(range(size))


@law(seeds, shards, st.integers(1, 5), st.integers(0, 100), st.integers(1, 40))
def test_the_order_does_not_depend_on_how_a_batch_is_split(seed, sizes, window, first, length):
    order = SampleOrder(seed, sizes, window)
    counters = range(first, first + length)
    assert order(counters).tolist() == [order([i])[0] for i in counters]


def test_the_order_is_another_for_every_seed_and_epoch():
    first = SampleOrder(0, (50,))(range(50)).tolist()
    assert first != list(range(50))
    assert first != SampleOrder(0, (50,))(range(50, 100)).tolist()
    assert first != SampleOrder(1, (50,))(range(50)).tolist()


def test_shards_are_read_a_window_at_a_time():
    """Of forty shards of ten, in windows of four, any forty places from a window's start hold four shards."""
    order = SampleOrder(3, (10,) * 40, window=4)
    for epoch in range(2):
        touched = [set((order(range(400 * epoch + i, 400 * epoch + i + 40)) // 10).tolist()) for i in range(0, 400, 40)]
        assert [len(each) for each in touched] == [4] * 10
        assert set.union(*touched) == set(range(40))


def test_places_within_a_window_are_mixed():
    shard = SampleOrder(0, (1000,) * 4, window=4)(range(4000)) // 1000
    assert (np.diff(shard) != 0).mean() == pytest.approx(0.75, abs=0.03)


def test_nothing_to_order():
    with pytest.raises(UserError, match="no pictures"):
        SampleOrder(0, (0, 0))


@law(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=4), examples=5)
def test_a_mixture_has_each_source_in_its_share_and_order(seed, weights):
    sizes = [70 + 50 * i for i in range(len(weights))]
    orders = tuple(SampleOrder(seed + i if seed < 0 else seed - i, (size,)) for i, size in enumerate(sizes))
    mixed = MixedSampleOrder(seed, orders, tuple(map(float, weights)))
    found = mixed(range(2000))
    starts = np.cumsum([0, *sizes])
    for i, order in enumerate(orders):
        own = found[(found >= starts[i]) & (found < starts[i + 1])] - starts[i]
        assert len(own) == pytest.approx(2000 * weights[i] / sum(weights), abs=2)
        assert own.tolist() == order(range(len(own))).tolist()  # so each picture once in an epoch of its source


@law(seeds, st.integers(0, 2500), st.integers(1, 40))
def test_a_mixture_does_not_depend_on_how_a_batch_is_split(seed, first, length):
    mixed = MixedSampleOrder(seed, (SampleOrder(seed, (30,)), SampleOrder(0, (50, 50))), (1.0, 2.5))
    counters = range(first, first + length)
    assert mixed(counters).tolist() == [mixed([i])[0] for i in counters]


def test_a_source_of_no_weight_is_refused():
    with pytest.raises(UserError, match=r"weighs 0\.0001 of 1\.0001 in all; give each a thousandth or more"):
        MixedSampleOrder(0, (SampleOrder(0, (3,)), SampleOrder(0, (3,))), (1.0, 0.0001))


def test_a_hundred_million_pictures_are_ordered_at_once_and_in_little_memory():
    code = """
import time
from pathlib import Path
from fewstep.data.order import SampleOrder
def peak():
    # Not getrusage: its peak begins with that of the process which started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])
before = peak()
begun = time.perf_counter()
order = SampleOrder(0, (10_000,) * 10_000)
indices = [int(i) for first in range(0, 10**9, 10**8 + 12345) for i in order(range(first, first + 256))]
print(time.perf_counter() - begun, peak() - before, len(set(indices)))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) < 20
    assert int(said[1]) < 100_000  # KiB
    assert int(said[2]) > 2500
