import numpy as np
import pytest
import scipy.linalg
import torch

from fewstep.evaluate.frechet import Moments, frechet_distance


def distance(first, second):
    return frechet_distance(Moments.of(first), Moments.of(second))


def exactly(mean, covariance, count=400):
    """Samples whose mean and covariance are exactly these."""
    dimensions = len(mean)
    x = torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(dimensions))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_closed_form_of_diagonal_gaussians():
    means = torch.tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]]).double()
    deviations = torch.tensor([[1.0, 2.0, 0.5], [2.0, 1.0, 0.1]]).double()
    a, b = (exactly(m, torch.diag(s**2)) for m, s in zip(means, deviations, strict=True))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert distance(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_rotating_both_changes_nothing():
    a = exactly(torch.zeros(4).double(), torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double()))
    b = exactly(torch.ones(4).double(), torch.diag(torch.tensor([4.0, 1.0, 2.0, 0.5]).double()))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert distance(a @ turn, b @ turn) == pytest.approx(distance(a, b), abs=1e-9)
    assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-9)


def test_of_a_set_to_itself_is_zero():
    a = exactly(torch.zeros(5).double(), torch.eye(5).double())
    assert distance(a, a) == pytest.approx(0, abs=1e-9)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="127 samples are too few for 64 features"):
        distance(torch.randn(127, 64), torch.randn(200, 64))
    distance(torch.randn(128, 64), torch.randn(200, 64))


def features(count, seed):
    """Correlated, far from zero, and of very different sizes, as those of networks are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(24, 24, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 24)
    return torch.randn(count, 24, generator=generator) @ mix + 300 + seed


@pytest.mark.parametrize("cuts", [(1, 2, 3), (700,), (10, 20, 990), tuple(range(1, 1000))])
def test_parts_add_up_to_the_whole(cuts):
    x = features(1000, 2)
    whole, parts = Moments.of(x), [Moments.of(part) for part in x.tensor_split(cuts)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.count == whole.count
    torch.testing.assert_close(total.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(total.covariance, whole.covariance, rtol=1e-10, atol=1e-10)
    other = Moments.of(features(900, 3))
    assert frechet_distance(total, other) == pytest.approx(frechet_distance(whole, other), rel=1e-10)


def test_moments_are_torchs():
    x = features(500, 4).double()
    torch.testing.assert_close(Moments.of(x).covariance, x.T.cov(), rtol=1e-10, atol=1e-10)


def test_agrees_with_scipys_root_of_a_general_matrix():
    first, second = (Moments.of(features(count, seed)) for count, seed in ((400, 5), (700, 6)))
    a, b = first.covariance.numpy(), second.covariance.numpy()
    root = scipy.linalg.sqrtm(a @ b).real
    expected = float((first.mean - second.mean).square().sum()) + np.trace(a + b - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
