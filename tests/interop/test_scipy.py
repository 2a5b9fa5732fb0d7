"""scipy: rotations and motions there and back, and both sides move a point alike."""

import numpy as np
import pytest
import torch
from scipy.spatial import transform

from geom.errors import MissingDependencyError, ShapeError
from geom.interop import from_scipy, to_scipy
from geom.lie import Rigid, quaternion

needs_rigid = pytest.mark.skipif(not hasattr(transform, "RigidTransform"), reason="scipy 1.16 has RigidTransform")


def test_rotations(quats: torch.Tensor) -> None:
    rotation = to_scipy(quats)
    assert isinstance(rotation, transform.Rotation)
    exact = quats.double()
    assert np.abs(rotation.as_matrix() - quaternion.to_matrix(exact).numpy()).max() < 3e-7
    back = from_scipy(rotation)
    assert isinstance(back, torch.Tensor) and back.dtype == torch.float64
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)  # scipy normalises; the sign stays
    assert (back - exact / length).abs().max() < 4e-16
    again = from_scipy(to_scipy(back))
    assert isinstance(again, torch.Tensor)
    assert (again - back).abs().max() < 3e-16
    assert torch.equal(
        from_scipy(transform.Rotation.from_quat([0.5, -0.5, 0.5, -0.5])), torch.tensor([-1, 1, -1, 1]) / 2
    )


def test_one_rotation_and_none() -> None:
    one = from_scipy(to_scipy(torch.tensor([0.0, 0.6, 0.0, 0.8])))
    assert isinstance(one, torch.Tensor) and one.shape == (4,)
    none = from_scipy(to_scipy(torch.zeros(0, 4)))
    assert isinstance(none, torch.Tensor) and none.shape == (0, 4)


@needs_rigid
def test_motions(rigids: Rigid) -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    motion = to_scipy(rigids)
    assert isinstance(motion, transform.RigidTransform)
    want = rigids.to(torch.float64).apply(x[:, None])[:, 0]
    assert np.abs(motion.apply(x.numpy()) - want.numpy()).max() < 3e-6
    back = from_scipy(motion)
    assert isinstance(back, Rigid)
    assert torch.equal(back.translation, rigids.translation.double()) and (back.quat_wxyz[:, 0] >= 0).all()
    again = from_scipy(to_scipy(back))
    assert isinstance(again, Rigid)
    assert (again.to_matrix() - back.to_matrix()).abs().max() < 2e-15
    assert (back.to_matrix() - rigids.to(torch.float64).to_matrix()).abs().max() < 1e-6


@needs_rigid
def test_one_motion() -> None:
    back = from_scipy(to_scipy(Rigid(torch.tensor([0.6, 0.8, 0, 0]), torch.tensor([1.0, 2, 3]))))
    assert isinstance(back, Rigid) and back.translation.tolist() == [1, 2, 3]


def test_an_old_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transform, "RigidTransform", raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"to_scipy of a Rigid needs scipy 1.16: pip install 'scipy>=1.16'"
    ):
        to_scipy(Rigid.identity())
    with pytest.raises(ShapeError, match="got int 3"):
        from_scipy(3)


@pytest.mark.parametrize("wrong", [3, torch.zeros(3), [1, 0, 0, 0]])
def test_other_things_are_refused(wrong: object) -> None:
    with pytest.raises(ShapeError, match=r"expected a Rigid or quaternions \(..., 4\)"):
        to_scipy(wrong)  # type: ignore[arg-type]
