"""`assert_gradients` passes right derivatives and names each kind of wrong one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid, se3
from geom.testing import assert_gradients

POINT = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)


class WrongGradient(torch.autograd.Function):
    """x^2, its derivative off by a thousandth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.002 * grad * ctx.saved_tensors[0]


class WrongSecond(torch.autograd.Function):
    """x^3 with its derivative, and a derivative of that which forgets half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * grad * x * x.detach()


class WrongForward(torch.autograd.Function):
    """x^2, its forward derivative off by a thousandth."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2.002 * tangent * ctx.saved_tensors[0]


def data_dependent(x: Tensor) -> Tensor:
    return x.sin() if x.sum() > 0 else x.cos()


def stretch_by_graph_break(x: Tensor) -> Tensor:
    return x * float(torch.ones(()).item())


# --- what passes -----------------------------------------------------------------------------------------------------


def test_right_derivatives_pass() -> None:
    assert_gradients(torch.sin, POINT)
    assert_gradients(lambda x: 2 * x, POINT)
    assert_gradients(lambda x: (x.sin(), (x * x.flip(0), x.sum())), POINT)
    assert_gradients(se3.exp, torch.zeros(6, dtype=torch.float32))
    assert_gradients(lambda x: x.detach() * 2, POINT, order=0, forward=False, vmap=False)  # constant: gradient 0


def test_a_cut_gradient_is_found() -> None:
    with pytest.raises(AssertionError, match="gradcheck: "):
        assert_gradients(lambda x: x.detach() * 2, POINT)


def test_values_and_plain_inputs() -> None:
    pose = Rigid.exp(torch.tensor([0.3, -0.2, 0.5, 0.7, 0.1, -0.4], dtype=torch.float64))
    rows = torch.tensor([2, 0])
    assert_gradients(lambda pose, x, rows, k: pose.apply(x)[rows] ** k, pose, torch.outer(POINT, POINT), rows, 2)


@pytest.mark.usefixtures("unchecked")
def test_compiled_functions_pass() -> None:
    assert_gradients(se3.exp, torch.zeros(6, dtype=torch.float64), order=0, compile=True)


def test_a_kink_passes_without_finite_differences_only() -> None:
    """At a branch cut every derivative is finite, and none is that of both sides."""
    with pytest.raises(AssertionError, match=r"<lambda>: gradcheck"):
        assert_gradients(lambda x: x.relu(), ZERO)
    assert_gradients(lambda x: x.relu(), ZERO, order=0)


# --- what does not ---------------------------------------------------------------------------------------------------


def test_a_wrong_first_derivative_is_found() -> None:
    with pytest.raises(AssertionError, match=r"Function\.apply: gradcheck: Jacobian mismatch"):
        assert_gradients(WrongGradient.apply, POINT, forward=False, vmap=False)
    with pytest.raises(AssertionError, match=": gradcheck: "):
        assert_gradients(WrongGradient.apply, POINT, order=1, forward=False, vmap=False)
    assert_gradients(WrongGradient.apply, POINT, order=0, forward=False, vmap=False)
    assert_gradients(WrongGradient.apply, POINT, forward=False, vmap=False, difference_tolerance=0.01)


def test_a_wrong_second_derivative_is_found() -> None:
    with pytest.raises(AssertionError, match=": gradgradcheck: "):
        assert_gradients(WrongSecond.apply, POINT, forward=False, vmap=False)
    assert_gradients(WrongSecond.apply, POINT, order=1, forward=False, vmap=False)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x / x, "the value in torch.float32"),
        (lambda x: x.abs().sqrt(), "the gradient in torch.float32"),
        (lambda x: torch.where(x == 0, x, x.sin() / x), "the gradient in torch.float32"),
        (lambda x: x.norm(), "the second derivative in torch.float32"),
        (lambda x: (x.double() - 1e300 if x.dtype == torch.float32 else x + torch.nan).to(x), "float32"),
        (lambda x: x if x.dtype == torch.float32 else x + torch.nan, "the value in torch.float64"),
    ],
)
def test_nan_and_inf_are_found(function, what: str) -> None:
    with pytest.raises(AssertionError, match=f"{what}.*: expected finite numbers, got NaN or inf in [13] of [13] at"):
        assert_gradients(function, ZERO, order=0)


def test_a_wrong_forward_derivative_is_found() -> None:
    with pytest.raises(AssertionError, match=r"jacfwd against jacrev: relative error 0.00"):
        assert_gradients(WrongForward.apply, POINT, vmap=False)
    assert_gradients(WrongForward.apply, POINT, vmap=False, forward=False)


def test_what_vmap_cannot_do_is_found() -> None:
    with pytest.raises(AssertionError, match=r"data_dependent: vmap .*: RuntimeError: .*control flow"):
        assert_gradients(data_dependent, POINT, forward=False)
    assert_gradients(data_dependent, POINT, forward=False, vmap=False)


@pytest.mark.usefixtures("unchecked")
def test_what_compile_cannot_do_is_found() -> None:
    with pytest.raises(AssertionError, match=r"data_dependent: torch.compile against eager: "):
        assert_gradients(data_dependent, POINT, forward=False, vmap=False, compile=True)


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_function_that_differs_is_found() -> None:
    def two_faced(x: Tensor) -> Tensor:
        return x * 1.001 if torch.compiler.is_compiling() else x

    with pytest.raises(AssertionError, match=r"torch.compile against eager: relative error 0.001 above the tolerance"):
        assert_gradients(two_faced, POINT, compile=True)


def test_the_tolerance_counts() -> None:
    assert_gradients(WrongForward.apply, POINT, vmap=False, tolerance=0.01)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ShapeError, match="order: expected one of 0, 1, 2, got int 3"):
        assert_gradients(torch.sin, POINT, order=3)
    with pytest.raises(ShapeError, match="inputs: expected a float tensor among them"):
        assert_gradients(torch.sin, torch.arange(3))
    with pytest.raises(ShapeError, match="argmax: expected a float tensor among its outputs"):
        assert_gradients(torch.argmax, POINT)
