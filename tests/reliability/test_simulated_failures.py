"""Months of failing machines (studies/failures.py): every picture comes once an epoch, whatever fails."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data.order import SampleOrder
from fewstep.train import ledger as ledgers
from fewstep.train.ledger import Ledger

SMALL = {"restart_seconds": 30.0, "save_seconds": 7.0, "pictures_per_second": 1.0, "repair_hours": 0.2, "days": 0.12}


@pytest.fixture(scope="module")
def failures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "studies"))
        import failures as study

        yield study


def test_every_picture_comes_once_in_any_month(failures):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**31), machines=st.integers(1, 9), ranks=st.integers(1, 4),
        hours=st.floats(0.05, 5), times=st.sampled_from([1, 2, 7, 50]),
        shards=st.lists(st.integers(1, 90), min_size=1, max_size=7),
    )  # fmt: skip
    def holds(seed, machines, ranks, hours, times, shards):
        cluster = failures.Cluster(
            machines=machines, ranks=ranks, hours_between_failures=hours, batch=machines * ranks * 6,
            shards=tuple(shards), **SMALL,
        )  # fmt: skip
        month = failures.live(cluster, times, seed)
        assert [each.first for each in month.segments[1:]] == [each.end for each in month.segments[:-1]]
        assert month.repeated == sum(each.done - each.end for each in month.segments)
        for epoch in range(min(6, month.updates * cluster.batch // sum(shards))):
            assert (failures.count_reads(cluster, month, seed, epoch) == 1).all()

    holds()


def test_the_runs_own_ledger_has_every_picture_once(failures, tmp_path, monkeypatch):
    cluster = failures.Cluster(
        machines=3, ranks=2, hours_between_failures=0.4, batch=36, shards=(50, 1, 70), **SMALL | {"days": 0.05}
    )  # fmt: skip
    month = next(
        found for seed in range(99) if (found := failures.live(cluster, 5, seed)).repeated > 5 and found.stops > 1
    )
    assert len({each.world for each in month.segments}) > 1
    order, size = SampleOrder(1, cluster.shards), sum(cluster.shards)

    def read_back(folder):
        folder.mkdir()
        for each in month.segments:
            ledger = Ledger(folder, each.first * cluster.batch, samples=True)
            for update in range(each.first, each.done):
                counters = range(update * cluster.batch, (update + 1) * cluster.batch)
                ledger.record_samples(update + 1, counters, list(map(str, order(counters))))
        Ledger(folder, month.updates * cluster.batch, samples=True)
        lines = map(json.loads, (folder / ledgers.SAMPLES_FILE).read_text().splitlines())
        return np.array([int(key) for line in lines for key in line["keys"]])

    ids = read_back(tmp_path / "right")
    epochs = len(ids) // size
    assert len(ids) == month.updates * cluster.batch
    assert epochs > 2
    assert all(sorted(ids[epoch * size : (epoch + 1) * size]) == list(range(size)) for epoch in range(epochs))
    # A ledger that forgets nothing has what was lost and done again twice.
    monkeypatch.setattr(ledgers, "number_in", lambda *_: -math.inf)
    assert len(read_back(tmp_path / "wrong")) == (month.updates + month.repeated) * cluster.batch


def test_a_cut_at_the_wrong_place_is_found(failures):
    cluster = failures.Cluster(hours_between_failures=1000.0, days=2)
    month = failures.live(cluster, 300, 0)
    failures.look_at(cluster, month, 0)
    at = next(i for i, each in enumerate(month.segments) if i and each.done > each.end)
    wrong = dataclasses.replace(month.segments[at], first=month.segments[at].first + 1)
    month.segments[at] = wrong
    epoch = wrong.first * cluster.batch // sum(cluster.shards)
    reads = sum(failures.count_reads(cluster, month, 0, each) for each in (epoch - 1, epoch))
    assert (reads != 2).any()


def test_the_interval_that_loses_least_is_youngs(failures):
    cluster = failures.Cluster(hours_between_failures=2000.0, repair_hours=0.01, restart_seconds=60.0, days=10)
    young = cluster.young() / cluster.update_seconds(cluster.all_ranks)

    def goodput(times):
        months = [failures.live(cluster, round(times * young), seed) for seed in range(60)]
        return sum(month.goodput(cluster) for month in months) / len(months)

    at_young = goodput(1)
    assert at_young > goodput(0.25)
    assert at_young > goodput(4)
    # What theory loses there: C/T for saving and T/2M for what is done twice, both √(C/2M); and a restart each M.
    between = cluster.hours_between_failures * 3600 / cluster.all_ranks
    lost = math.sqrt(2 * cluster.save_seconds / between) + (cluster.restart_seconds + 36) / between
    assert abs(1 - at_young - lost) < 0.25 * lost


@pytest.mark.parametrize(("batch", "machines", "world"), [(3840, 31, 240), (2048, 31, 128), (3840, 32, 256)])
def test_the_world_is_the_largest_that_shares_the_batch(failures, batch, machines, world):
    assert failures.Cluster(batch=batch).largest_world(machines) == world
