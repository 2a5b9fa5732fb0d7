"""roma and pypose, where they are installed; what is said where they are not."""

import sys
from typing import Any

import pytest
import torch

from geom import interop
from geom.errors import MissingDependencyError, ShapeError
from geom.interop import from_pypose, from_roma, to_pypose, to_roma
from geom.lie import Rigid, quaternion
from geom.lie.similarity import Sim3

EPS = {torch.float32: 6e-7, torch.float64: 1e-15}


@pytest.fixture
def roma() -> Any:
    return pytest.importorskip("roma")


@pytest.fixture
def pypose() -> Any:
    return pytest.importorskip("pypose")


def same(a: Rigid, b: Rigid) -> bool:
    return torch.equal(a.quat_wxyz, b.quat_wxyz) and torch.equal(a.translation, b.translation)


def test_roma_there_and_back(roma: Any, rigids: Rigid) -> None:
    there = to_roma(rigids)
    assert isinstance(there, roma.RigidUnitQuat) and same(from_roma(there), rigids)
    assert (there.to_homogeneous() - rigids.to_matrix()).abs().max() < 4 * EPS[rigids.translation.dtype]
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(rigids.translation)
    assert (there.apply(x) - rigids.apply(x[:, None])[:, 0]).abs().max() < 16 * EPS[x.dtype]


def test_roma_matrices_and_broadcast_parts(roma: Any, rigids: Rigid) -> None:
    back = from_roma(to_roma(rigids).to_rigid())
    assert (back.to_matrix() - rigids.to_matrix()).abs().max() < 4 * EPS[rigids.translation.dtype]
    one = roma.RigidUnitQuat(to_roma(rigids[:1]).linear, rigids.translation)
    assert from_roma(one).quat_wxyz.shape == (12, 4)


def test_roma_refuses_what_is_not_rigid(roma: Any) -> None:
    with pytest.raises(ShapeError, match="expected a Rigid"):
        to_roma(torch.zeros(4))  # type: ignore[arg-type]
    for wrong in (roma.Rigid(torch.eye(2), torch.zeros(2)), roma.Isometry(torch.eye(3), torch.zeros(3)), 3):
        with pytest.raises(ShapeError, match=r"expected a roma.RigidUnitQuat"):
            from_roma(wrong)


def test_pypose_there_and_back(pypose: Any, rigids: Rigid) -> None:
    tolerance = 16 * EPS[rigids.translation.dtype]
    there = to_pypose(rigids)
    assert there.ltype == pypose.SE3_type and same(from_pypose(there), rigids)
    assert (there.matrix() - rigids.to_matrix()).abs().max() < tolerance
    rotation = to_pypose(rigids.quat_wxyz)
    assert rotation.ltype == pypose.SO3_type and torch.equal(from_pypose(rotation), rigids.quat_wxyz)
    assert (rotation.matrix() - quaternion.to_matrix(rigids.quat_wxyz)).abs().max() < tolerance
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(rigids.translation)
    assert (there.Act(x) - rigids.apply(x[:, None])[:, 0]).abs().max() < tolerance


def test_pypose_similarities(pypose: Any, rigids: Rigid) -> None:
    scale = torch.linspace(0.5, 2, 12, dtype=rigids.translation.dtype)
    sim = Sim3.from_rigid(rigids, scale)
    there = to_pypose(sim)
    assert there.ltype == pypose.Sim3_type
    back = from_pypose(there)
    assert isinstance(back, Sim3) and torch.equal(back.scale, scale)
    assert torch.equal(back.quat_wxyz, rigids.quat_wxyz) and torch.equal(back.translation, rigids.translation)
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(scale)
    assert (there.Act(x) - sim.apply(x[:, None])[:, 0]).abs().max() < 16 * EPS[scale.dtype]


def test_pypose_twists_are_ours(pypose: Any, rigids: Rigid) -> None:
    twist = 0.3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).to(rigids.translation)
    want = Rigid.identity(12, dtype=twist.dtype).retract(twist)
    assert (pypose.se3(twist).Exp().matrix() - want.to_matrix()).abs().max() < 4 * EPS[twist.dtype]


def test_pypose_refuses_what_it_cannot_hold(pypose: Any) -> None:
    for wrong in (3, torch.zeros(7)):
        with pytest.raises(ShapeError, match=r"expected a Rigid, a Sim3 or quaternions \(..., 4\)"):
            to_pypose(wrong)  # type: ignore[arg-type]
    for wrong, words in ((torch.zeros(7), "float32 tensor"), (pypose.randn_se3(2), "se3Type")):
        with pytest.raises(ShapeError, match=f"expected a pypose SO3, SE3 or Sim3, got .*{words}"):
            from_pypose(wrong)


@pytest.mark.parametrize("name", ["roma", "pypose", "pytorch3d"])
def test_without_them_the_error_says_how_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"to_{name} needs {name}: .*(pip install {name}|no wheel)"):
        getattr(interop, f"to_{name}")(Rigid.identity())
