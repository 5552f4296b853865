"""Hand-made hostile files are read or refused: no traceback, nothing read elsewhere, no hang, little memory."""

import pytest
from fuzzing import MEMORY, run_all


def describe(found):
    """The faults, and enough of each to see where it comes from."""
    return "\n\n".join("{number} {reader}: {kind}\n{what}".format(**fault) for fault in found["faults"][:5])


@pytest.mark.parametrize(("seed", "count"), [(24, 300), pytest.param(1, 100_000, marks=pytest.mark.slow)])
def test_every_input_is_read_or_refused(seed, count, tmp_path):
    found = run_all(seed, count, tmp_path)
    assert not found["faults"], f"{len(found['faults'])} faults\n{describe(found)}"
    assert sum(sum(each.values()) for each in found["counts"].values()) == count
    assert all(each["read"] or count < 1000 for each in found["counts"].values())  # some damage is none
    assert found["peak"] < MEMORY
    print(f"\n{count} inputs in {found['seconds']:.0f} s, {found['peak'] / 2**20:.0f} MiB at most")
    for name, each in found["counts"].items():
        print(f"{name}: {each['read']} read, {each['refused']} refused, {found['slowest'][name]:.1f} s at most")
