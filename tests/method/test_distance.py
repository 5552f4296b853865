import math

import pytest
import torch

from fewstep.method.distances import DISTANCES, cauchy, l2, pseudo_huber, root

X = torch.tensor([[[0.0, 3.0]], [[1.0, 1.0]]], dtype=torch.float64)
Y = torch.tensor([[[4.0, 3.0]], [[1.0, 1.0]]], dtype=torch.float64)


def test_l2_is_the_mean_square_of_each_sample():
    assert l2(X, Y).tolist() == [8.0, 0.0]


def test_pseudo_huber_is_elementwise_then_averaged():
    c = 3.0
    assert pseudo_huber(c)(X, Y).tolist() == pytest.approx([(math.sqrt(16 + 9) - 3) / 2, 0.0])


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_off():
    near, far = pseudo_huber(1.0)(torch.tensor([[1e-3], [1e3]], dtype=torch.float64), torch.zeros(2, 1)).tolist()
    assert near == pytest.approx(0.5e-6, rel=1e-4)
    assert far == pytest.approx(1e3, rel=2e-3)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_symmetric_positive_and_have_a_finite_gradient_at_zero(name):
    distance = DISTANCES[name](0.03)
    x, y = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64).unbind()
    assert distance(x, y).shape == (4,)
    assert torch.equal(distance(x, y), distance(y, x))
    assert (distance(x, y) > 0).all()
    x.requires_grad_()
    distance(x, x.detach()).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_c_of_pseudo_huber_matters():
    assert not torch.allclose(pseudo_huber(0.03)(X, Y)[0], pseudo_huber(0.1)(X, Y)[0])


def test_root_and_cauchy_are_of_the_sample_as_a_whole():
    square = 16.0  # ‖X − Y‖² of the first sample
    assert root(3.0)(X, Y).tolist() == pytest.approx([math.sqrt(square + 9) - 3, 0.0])
    assert cauchy(3.0)(X, Y).tolist() == pytest.approx([math.log(1 + square / 18), 0.0])
