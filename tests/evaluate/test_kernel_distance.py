import math

import pytest
import torch

from fewstep.evaluate.bootstrap import bootstrap_interval
from fewstep.evaluate.kernel_distance import kernel_distance


def normal(count, seed, shift=0.0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_same_distribution_is_zero_within_three_errors_and_no_bias():
    found = [kernel_distance(normal(300, 2 * i), normal(400, 2 * i + 1)) for i in range(40)]
    assert sum(abs(value) <= 3 * error for value, error in found) >= 38
    values = torch.tensor([value for value, _ in found])
    assert abs(float(values.mean())) <= 3 * float(values.std()) / math.sqrt(40)


def test_its_error_is_how_far_estimates_scatter():
    found = [kernel_distance(normal(400, 2 * i), normal(400, 2 * i + 1, 0.5)) for i in range(60)]
    scatter = float(torch.tensor([value for value, _ in found]).std())
    stated = sum(error for _, error in found) / len(found)
    assert stated == pytest.approx(scatter, rel=0.3)


def test_closed_form_in_one_dimension():
    """x = ±1, y = ±2 with equal chances: E k over both = (8 + 0)/2, (125 − 27)/2, (27 − 1)/2."""
    signs = (torch.arange(40_000) % 2 * 2 - 1.0)[:, None]
    value, error = kernel_distance(signs, 2 * signs)
    assert value == pytest.approx(4 + 49 - 2 * 13, abs=4 * error)
    assert error < 1


def test_moves_apart_with_the_distributions():
    near, far = (kernel_distance(normal(500, 1), normal(500, 2, shift)) for shift in (0.2, 0.6))
    assert 0 < near[0] < far[0]
    assert kernel_distance(normal(500, 1), normal(500, 2, 0.6)) == far


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="19 samples are too few"):
        kernel_distance(normal(19, 1), normal(100, 2))
    assert math.isfinite(kernel_distance(normal(20, 1), normal(100, 2))[1])


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        values = torch.rand(80, generator=torch.Generator().manual_seed(seed))
        low, high = bootstrap_interval(values)
        covered += low <= 0.5 <= high
        normal_width = 2 * 1.96 * float(values.std()) / math.sqrt(80)
        assert high - low == pytest.approx(normal_width, rel=0.15)
    assert 52 <= covered <= 60
