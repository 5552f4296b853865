import pytest
import torch

from fewstep.evaluate.frechet import frechet_distance


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
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_rotating_both_changes_nothing():
    a = exactly(torch.zeros(4).double(), torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double()))
    b = exactly(torch.ones(4).double(), torch.diag(torch.tensor([4.0, 1.0, 2.0, 0.5]).double()))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)


def test_of_a_set_to_itself_is_zero():
    a = exactly(torch.zeros(5).double(), torch.eye(5).double())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="too few"):
        frechet_distance(torch.randn(64, 64), torch.randn(100, 64))
