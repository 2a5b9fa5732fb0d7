"""`assert_equivariant` passes what moves with its input and names what does not."""

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import Rigid, quaternion
from geom.lie.similarity import Sim3
from geom.testing import assert_equivariant


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, generator=draw(), dtype=torch.float64).to(dtype)


def random_rigid(count: int) -> Rigid:
    twist = torch.randn(count, 6, generator=draw(1), dtype=torch.float64)
    return Rigid.identity(count, dtype=torch.float64).retract(twist)


def area_vectors(x: Tensor) -> Tensor:
    return torch.linalg.cross(x[1:-1] - x[:1], x[2:] - x[:1])


# --- what passes -----------------------------------------------------------------------------------------------------


def test_the_named_actions(dtype: torch.dtype) -> None:
    x, tolerance = cloud(dtype=dtype), 64 * torch.finfo(dtype).eps
    assert_equivariant(lambda x: x.mean(0), x, act_in="point", act_out="point", tolerance=tolerance, generator=draw())
    assert_equivariant(area_vectors, x, act_in="point", act_out="vector", tolerance=tolerance, generator=draw())
    assert_equivariant(
        lambda x: (x - x.mean(0)).square().sum(),
        x,
        act_in="point",
        act_out="invariant",
        tolerance=tolerance,
        generator=draw(),
    )


def test_several_inputs_and_outputs_of_different_kinds() -> None:
    def predict(pose: Rigid, x: Tensor, weight: Tensor) -> tuple[Rigid, Tensor, Tensor, Tensor]:
        local = pose.inverse().apply(x)
        step = torch.tanh((weight[:, None] * local).sum(0))
        turned = quaternion.rotate(pose.quat_wxyz, step)
        return pose.retract(torch.cat([step, step])), pose.translation + turned, turned, local

    x, poses = cloud(), random_rigid(1)[0]
    weight = torch.rand(12, generator=draw(), dtype=torch.float64)
    assert_equivariant(
        predict,
        poses,
        x,
        weight,
        act_in=("pose", "point", "invariant"),
        act_out=("pose", "point", "vector", "invariant"),
        tolerance=1e-12,
        generator=draw(),
    )


def test_other_groups_and_actions() -> None:
    similar = Sim3.exp(torch.randn(5, 7, generator=draw(), dtype=torch.float64))
    assert_equivariant(
        area_vectors,
        cloud(),
        act_in="point",
        act_out=lambda g, v: g.scale**2 * quaternion.rotate(g.quat_wxyz, v),
        elements=similar,
        tolerance=1e-12,
    )
    orders = [torch.randperm(12, generator=draw(seed)) for seed in range(4)]

    def permute(order: Tensor, x: Tensor) -> Tensor:
        return x[order]

    assert_equivariant(
        lambda x: x.cumsum(0)[-1] - x, cloud(), act_in=permute, act_out=permute, elements=orders, tolerance=1e-14
    )


def test_points_in_the_plane() -> None:
    angle = torch.linspace(0, 6, 5, dtype=torch.float64)

    class Turn:
        def __init__(self, angle: Tensor) -> None:
            self.angle = angle

        def to_matrix(self) -> Tensor:
            c, s, one = self.angle.cos(), self.angle.sin(), torch.ones_like(self.angle)
            return torch.stack([c, -s, one, s, c, one, 0 * one, 0 * one, one]).reshape(3, 3)

    assert_equivariant(
        lambda x: x.mean(0), cloud()[:, :2], act_in="point", act_out="point", elements=map(Turn, angle), tolerance=1e-14
    )


def test_q_and_minus_q_are_one_pose() -> None:
    assert_equivariant(
        lambda x: Rigid.from_matrix(x.to_matrix()),
        random_rigid(6),
        act_in="pose",
        act_out="pose",
        tolerance=1e-14,
        generator=draw(),
    )


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "act_out"),
    [
        (lambda x: x.amax(0), "point"),
        (lambda x: x.mean(0), "vector"),  # blind to translations this would pass
        (lambda x: x.mean(0), "invariant"),
        (lambda x: x.norm(dim=-1), "invariant"),
        (lambda x: area_vectors(x).abs(), "vector"),
        (lambda x: x * float("nan"), "point"),
        (lambda x: torch.where(x > 2, torch.nan, x).mean(0), "point"),  # NaN for some elements only
    ],
)
def test_what_is_not_equivariant_is_found(function, act_out: str) -> None:
    with pytest.raises(AssertionError, match=r"<lambda> is not equivariant: output 0: .* tolerance 1e-09 at element"):
        assert_equivariant(function, cloud(), act_in="point", act_out=act_out, tolerance=1e-9, generator=draw())


def test_the_output_and_the_element_are_named() -> None:
    motions = random_rigid(3)
    elements = [Rigid.identity(dtype=torch.float64), motions[0], Rigid.identity(dtype=torch.float64)]
    with pytest.raises(AssertionError, match=r"output 0: relative error nan .* at element 1: Rigid\(\["):
        assert_equivariant(
            lambda x: torch.where(x == cloud(), x, torch.nan),
            cloud(),
            act_in="point",
            act_out="point",
            elements=elements,
            tolerance=1e-9,
        )
    with pytest.raises(AssertionError, match=r"output 1: relative error .* at element 1: Rigid\(\["):
        assert_equivariant(
            lambda x: (x, x.amax(0)), cloud(), act_in="point", act_out="point", elements=elements, tolerance=1e-9
        )


def test_outputs_that_change_shape_are_found() -> None:
    with pytest.raises(AssertionError, match=r"output 0 at element 0: expected \d+ numbers, got \d+"):
        assert_equivariant(
            lambda x: x[x[:, 0] > 0], cloud(), act_in="point", act_out="point", tolerance=1e-9, generator=draw(3)
        )


def test_the_generator_decides_the_elements() -> None:
    def message(seed: int) -> str:
        with pytest.raises(AssertionError) as caught:
            assert_equivariant(
                lambda x: x.amax(0), cloud(), act_in="point", act_out="point", tolerance=1e-9, generator=draw(seed)
            )
        return str(caught.value)

    assert message(0) == message(0) != message(1)


def test_wrong_use_is_refused() -> None:
    x = cloud()
    with pytest.raises(ShapeError, match=r"act_in: expected a function or one of 'point', .* got 'points'"):
        assert_equivariant(torch.sin, x, act_in="points", act_out="point", tolerance=1.0)
    with pytest.raises(ShapeError, match="act_in: expected one action for each of 1 inputs, got 2"):
        assert_equivariant(torch.sin, x, act_in=("point", "point"), act_out="point", tolerance=1.0)
    with pytest.raises(ShapeError, match="act_out: expected one action for each of 1 outputs, got 2"):
        assert_equivariant(torch.sin, x, act_in="point", act_out=("point", "point"), tolerance=1.0)
    with pytest.raises(ShapeError, match="elements: expected at least one"):
        assert_equivariant(torch.sin, x, act_in="point", act_out="point", tolerance=1.0, elements=[])
    with pytest.raises(ShapeError, match="inputs: expected a float tensor"):
        assert_equivariant(lambda k: k, torch.arange(3), act_in="invariant", act_out="invariant", tolerance=1.0)
