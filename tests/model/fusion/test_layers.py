"""Layers that are padded for speed equal their equations, and so do their gradients."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.fusion.layers import RowLinear, linear_and_gate, softmax_over_experts

ROWS = 5
# Sums of at most 20 products of numbers around 1, in float32.
TOLERANCE = 1e-5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def doubles(*tensors: Tensor | None) -> list[NDArray[np.float64]]:
    return [np.asarray(tensor.detach(), np.float64) for tensor in tensors if tensor is not None]


def assert_close(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("width", [1, 3, 4, 8, 19])
def test_a_row_linear_is_a_linear(width: int) -> None:
    linear = RowLinear(width, 7)
    rows_BD, upstream_BH = drawn(ROWS, width, seed=1), drawn(ROWS, 7, seed=2)
    outputs_BH = linear(rows_BD)
    outputs_BH.backward(upstream_BH)
    rows, weight, bias, upstream = doubles(rows_BD, linear.weight, linear.bias, upstream_BH)
    assert_close(doubles(outputs_BH)[0], rows @ weight.T + bias)
    gradients = doubles(rows_BD.grad, linear.weight.grad, linear.bias.grad)
    for gradient, expected in zip(gradients, (upstream @ weight, upstream.T @ rows, upstream.sum(0)), strict=True):
        assert_close(gradient, expected)


@pytest.mark.parametrize(("width", "outputs", "experts"), [(4, 6, 2), (3, 1, 1), (19, 5, 9)])
def test_a_linear_and_a_gate_are_two_linears(width: int, outputs: int, experts: int) -> None:
    rows_BD = drawn(ROWS, width, seed=1)
    weights = [drawn(size, width, seed=2 + size) for size in (outputs, experts)]
    biases = [drawn(size, seed=3 + size) for size in (outputs, experts)]
    upstream = [drawn(ROWS, size, seed=4 + size) for size in (outputs, experts)]
    both = linear_and_gate(rows_BD, weights[0], biases[0], weights[1], biases[1])
    torch.autograd.backward(both, upstream)
    [rows] = doubles(rows_BD)
    expected_rows = np.zeros_like(rows)
    for result, weight_HD, bias_H, given_BH in zip(both, weights, biases, upstream, strict=True):
        weight, bias, given = doubles(weight_HD, bias_H, given_BH)
        assert_close(doubles(result)[0], rows @ weight.T + bias)
        of_weight, of_bias = doubles(weight_HD.grad, bias_H.grad)
        assert_close(of_weight, given.T @ rows)
        assert_close(of_bias, given.sum(0))
        expected_rows += given @ weight
    assert_close(doubles(rows_BD.grad)[0], expected_rows)


@pytest.mark.parametrize("shape", [(ROWS, 1), (ROWS, 7), (ROWS, 3, 8), (ROWS, 2, 17)])
def test_weights_of_experts_are_a_softmax(shape: tuple[int, ...]) -> None:
    logits, upstream = drawn(*shape, seed=1), drawn(*shape, seed=2)
    weights = softmax_over_experts(logits)
    torch.autograd.backward(weights, upstream)
    given, above = doubles(logits, upstream)
    powers = np.exp(given)
    expected = powers / powers.sum(-1, keepdims=True)
    assert_close(doubles(weights)[0], expected)
    of_logits = expected * (above - (above * expected).sum(-1, keepdims=True))
    assert_close(doubles(logits.grad)[0], of_logits)
