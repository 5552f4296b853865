"""What an evaluation says of its time."""

import pytest

from fewstep.evaluate.cell import Cell
from fewstep.evaluate.forecast import count_calls, count_work, say_time


def test_work_is_counted_in_calls_of_the_network():
    teacher, few = Cell("teacher", 50, "trailing", 2.0), Cell("lcm", 4, "lcm", 2.0)
    assert [count_calls(cell) for cell in (teacher, few)] == [102, 6]
    assert count_work([teacher, few], 16, [4, 0]) == 102 * 20 + 6 * 16


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_time_is_said_as_a_person_would(seconds, said):
    assert say_time(seconds) == said
