"""The account of samples: what is too much, and what a restart forgets."""

import json

import pytest

from fewstep.data.latents import DroppedPicture
from fewstep.errors import UserError
from fewstep.train.ledger import Ledger


def lost(counters):
    return [DroppedPicture(i, f"shard.tar/{i}", "broken picture") for i in counters]


def test_a_hundred_in_a_row_whatever_stands_beside_them(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=False)
    with pytest.raises(UserError, match=r"150 pictures in a row could not be read; the last was shard.tar/9000"):
        ledger.record(10_000, lost([*range(1000, 1150), 9000]))


def test_a_run_that_reads_nothing_at_all_ends_at_once(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=False)
    ledger.record(4, lost(range(4)))  # of a run that may yet read others
    with pytest.raises(UserError, match=r"none of the first 8 pictures could be read; the last was shard.tar/7"):
        ledger.record(8, lost(range(4, 8)))


def test_a_row_goes_on_from_one_account_to_the_next(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=False)
    ledger.record(10_000, lost(range(9940, 10_000)))
    with pytest.raises(UserError, match="100 pictures in a row"):
        ledger.record(10_040, lost(range(10_000, 10_040)))


def test_what_a_filter_refuses_is_listed_and_no_sign_of_trouble(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=False)
    ledger.record(400, [DroppedPicture(i, f"shard.tar/{i}", "shorter side below 512") for i in range(300)])
    assert len((tmp_path / "dropped.jsonl").read_text().splitlines()) == 300


def test_a_share_counts_from_a_hundred_on(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=False)
    ledger.record(200, lost(range(0, 198, 2)))  # half of them, but only 99
    with pytest.raises(UserError, match=r"100 of 210 pictures could not be read, more than 5%"):
        ledger.record(210, lost([209]))


def test_a_restart_forgets_what_came_after_and_counts_what_came_before(tmp_path):
    ledger = Ledger(tmp_path, 0, samples=True)
    ledger.record(100, lost([5, 50, 70]))
    for step, first in ((1, 0), (2, 50)):
        ledger.record_samples(step, range(first, first + 50), [str(i) for i in range(first, first + 50)])
    with (tmp_path / "dropped.jsonl").open("a") as file:
        file.write('{"counter": 7')  # cut off
    again = Ledger(tmp_path, 50, samples=True)
    assert [json.loads(line)["counter"] for line in (tmp_path / "dropped.jsonl").open()] == [5]
    assert [json.loads(line)["step"] for line in (tmp_path / "samples.jsonl").open()] == [1]
    again.record(1900, lost(range(52, 248, 2)))  # 98 and the one from before
    with pytest.raises(UserError, match="100 of 1910"):
        again.record(1910, lost([300]))
