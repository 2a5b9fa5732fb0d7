"""Orders of quaternions and matrices for row vectors; what is no rigid motion is refused."""

import pickle

import pytest
import torch

from geom.errors import MissingDependencyError, ShapeError
from geom.interop import quat_wxyz_to_xyzw, quat_xyzw_to_wxyz, rigid_from_row_vectors, rigid_to_row_vectors
from geom.interop.peers import PeerMissingError
from geom.lie import Rigid

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


def test_quaternions_change_order_and_nothing_else(quats: torch.Tensor) -> None:
    xyzw = quat_wxyz_to_xyzw(quats)
    assert torch.equal(xyzw, torch.stack([quats[:, i] for i in (1, 2, 3, 0)], -1))
    assert torch.equal(quat_xyzw_to_wxyz(xyzw), quats)
    assert torch.equal(torch.func.vmap(quat_wxyz_to_xyzw)(quats), xyzw)
    assert quat_xyzw_to_wxyz(torch.zeros(0, 5, 4)).shape == (0, 5, 4)


def test_row_vectors(rigids: Rigid) -> None:
    M = rigid_to_row_vectors(rigids)
    x = torch.randn(5, 4, dtype=M.dtype, generator=torch.Generator().manual_seed(0))
    x[:, 3] = 1
    y = (x @ M)[..., :3]
    assert (y - rigids.apply(x[:, :3])).abs().max() < 16 * EPS[M.dtype]
    back = rigid_from_row_vectors(M)
    assert torch.equal(back.translation, rigids.translation)
    assert (rigid_to_row_vectors(back) - M).abs().max() < 4 * EPS[M.dtype]
    assert rigid_from_row_vectors(M[:0]).translation.shape == (0, 3)


def test_gradients_pass() -> None:
    twist = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.2, -0.4], dtype=torch.float64, requires_grad=True)

    def there_and_back(twist: torch.Tensor) -> torch.Tensor:
        rigid = rigid_from_row_vectors(rigid_to_row_vectors(Rigid.identity(dtype=torch.float64).retract(twist)))
        return torch.cat([quat_xyzw_to_wxyz(quat_wxyz_to_xyzw(rigid.quat_wxyz)), rigid.translation])

    assert torch.autograd.gradcheck(there_and_back, (twist,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((0, 0, 1.01), "scales, shears or mirrors"),
        ((0, 1, 0.01), "scales, shears or mirrors"),
        ((2, 2, -1.0), "scales, shears or mirrors"),
        ((1, 1, float("nan")), "or NaN"),
        ((0, 3, 0.1), "projective"),
        ((3, 3, 2.0), "projective"),
    ],
)
def test_a_matrix_that_is_no_motion_is_refused(change: tuple[int, int, float], words: str) -> None:
    M = torch.eye(4)
    M[change[0], change[1]] = change[2]
    with pytest.raises(ShapeError, match=words):
        rigid_from_row_vectors(M)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"quat_wxyz: expected a tensor \(..., 4\), got a float32 tensor of shape"):
        quat_wxyz_to_xyzw(torch.zeros(3))
    with pytest.raises(ShapeError, match="got a list"):
        quat_xyzw_to_wxyz([1, 0, 0, 0])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(..., 4, 4\)"):
        rigid_from_row_vectors(torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="expected a Rigid"):
        rigid_to_row_vectors(torch.eye(4))  # type: ignore[arg-type]


def test_a_missing_library_is_named_with_its_install_line() -> None:
    error = PeerMissingError("roma", purpose="to_roma", install="pip install roma")
    assert isinstance(error, MissingDependencyError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "to_roma needs roma: pip install roma"
