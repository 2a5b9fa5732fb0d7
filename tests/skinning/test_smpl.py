"""Bodies in the form of SMPL: the published equations in plain float64, and files that are not what they should be."""

import io
import zipfile

import numpy as np
import pytest
import torch

from geom.errors import FileFormatError, ShapeError
from geom.lie import quaternion
from geom.skinning.body import BodyState
from geom.skinning.body_fit import fit_body
from geom.skinning.smpl import SmplModel, load_smpl
from geom.testing import assert_gradients
from geom.values import replace

V, J, S = 40, 6, 3
PARENT = [-1, 0, 0, 1, 3, 2]


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    regressor = random.random((J, V)) ** 8
    weights = random.random((V, J)) ** 4
    return {
        "v_template": random.normal(size=(V, 3)),
        "f": random.integers(0, V, (50, 3)).astype(np.uint32),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([[2**32 - 1, *PARENT[1:]], range(J)], np.uint32),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "shapedirs": 0.1 * random.normal(size=(V, 3, S)),
        "posedirs": 0.05 * random.normal(size=(V, 3, 9 * (J - 1))),
    }


def published(a: dict[str, np.ndarray], beta: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loper et al. 2015, Eqs. (1) to (10), one body, joint by joint with homogeneous matrices."""
    R = np.zeros((J, 3, 3))
    for j, w in enumerate(theta):
        angle = np.linalg.norm(w)
        x, y, z = w / angle if angle else w
        K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        R[j] = np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K  # Eq. (1)
    shaped = a["v_template"] + a["shapedirs"] @ beta  # Eq. (8)
    joints = a["J_regressor"] @ shaped  # Eq. (10)
    surface = shaped + a["posedirs"] @ (R[1:] - np.eye(3)).ravel()  # Eq. (9)
    world = []
    for j, p in enumerate(PARENT):
        own = np.eye(4)
        own[:3, :3], own[:3, 3] = R[j], joints[j] - (joints[p] if p >= 0 else 0)
        world.append(own if p < 0 else world[p] @ own)  # Eq. (4)
    out = np.zeros((V, 3))
    for j in range(J):
        away = np.eye(4)
        away[:3, 3] = -joints[j]
        moved = (world[j] @ away @ np.c_[surface, np.ones(V)].T).T[:, :3]  # Eq. (3)
        out += a["weights"][:, j, None] * moved  # Eq. (2)
    return out, np.array(world)[:, :3, 3]


def written(tmp_path, **changes):
    path = tmp_path / "model.npz"
    np.savez(path, **{k: v for k, v in (arrays() | changes).items() if v is not None})
    return path


@pytest.mark.parametrize("turned", [0.0, 0.7])
def test_equals_the_published_equations(tmp_path, turned, dtype):
    random = np.random.default_rng(1)
    beta, theta = random.normal(size=S), turned * random.normal(size=(J, 3))
    vertices, joints = published(arrays(), beta, theta)
    model = load_smpl(written(tmp_path), dtype=dtype)
    still = model.state()
    quat = quaternion.exp(torch.from_numpy(theta).to(dtype))
    move = torch.tensor([1.0, 2, 3], dtype=dtype)
    posed = model.apply(replace(still, shape=torch.from_numpy(beta).to(dtype), quat_wxyz=quat, translation=move))
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    assert posed.vertices.dtype == dtype
    assert (posed.vertices - move - torch.from_numpy(vertices)).abs().max() < 10 * tolerance
    assert (posed.joints - move - torch.from_numpy(joints)).abs().max() < 10 * tolerance


def test_at_rest_there_is_no_pose_offset(tmp_path):
    model = load_smpl(written(tmp_path), dtype=torch.float64)
    assert torch.equal(model.surface(model.state(2)), model.template.expand(2, V, 3))


@pytest.mark.usefixtures("unchecked")
def test_gradients(tmp_path):
    models = {dtype: load_smpl(written(tmp_path), dtype=dtype) for dtype in (torch.float32, torch.float64)}
    still = models[torch.float64].state()
    generator = torch.Generator().manual_seed(0)
    state = still.retract(0.5 * torch.randn(still.tangent_dim, dtype=torch.float64, generator=generator))

    def posed(state: BodyState) -> torch.Tensor:
        return models[state.shape.dtype].apply(state).vertices[::8]

    assert_gradients(posed, state, compile=True)
    assert_gradients(posed, still)  # at rest too: no branch of the exponential is a kink


def test_fits_to_its_own_vertices(tmp_path):
    model = load_smpl(written(tmp_path), dtype=torch.float64)
    still = model.state(2)
    generator = torch.Generator().manual_seed(3)
    state = still.retract(0.4 * torch.randn(2, still.tangent_dim, dtype=torch.float64, generator=generator))
    posed = model.apply(state)
    fit = fit_body(model, vertices=posed.vertices, prior=0.0)
    assert fit.converged.all()
    assert (model.apply(fit.value).vertices - posed.vertices).abs().max() < 1e-9
    assert (fit.value.shape - state.shape).abs().max() < 1e-8


def test_saves(tmp_path):
    model = load_smpl(written(tmp_path))
    model.save(tmp_path / "model.safetensors")
    again = SmplModel.load(tmp_path / "model.safetensors")
    assert torch.equal(again.pose_basis, model.pose_basis) and torch.equal(again.parent, torch.tensor(PARENT))


def objects(x: np.ndarray) -> np.ndarray:
    found = np.empty(1, object)
    found[0] = x
    return found


WRONG = {
    "an object array": ({"J_regressor": objects(np.eye(2))}, "pickled objects.*toarray"),
    "a missing array": ({"posedirs": None}, "posedirs is missing"),
    "another count": ({"weights": np.ones((V + 1, J))}, "weights: expected shape"),
    "too few dimensions": ({"shapedirs": np.ones(V)}, "shapedirs: expected shape"),
    "NaN": ({"v_template": np.full((V, 3), np.nan)}, "v_template: expected an array of finite"),
    "text": ({"v_template": np.full((V, 3), "x")}, "v_template: expected numbers"),
    "a face out of range": ({"f": np.full((2, 3), V)}, "f: expected vertices"),
    "a negative weight": ({"weights": -np.ones((V, J))}, "weights: expected numbers"),
    "a parent after its child": ({"kintree_table": np.array([[0, 5, 0, 1, 3, 2], range(J)])}, "kintree_table"),
    "a scalar": ({"kintree_table": np.array(3)}, "kintree_table: expected an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(tmp_path, case):
    changes, message = WRONG[case]
    with pytest.raises(FileFormatError, match=message):
        load_smpl(written(tmp_path, **changes))


def test_not_an_archive(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(FileFormatError, match="not a readable"):
        load_smpl(path)
    with pytest.raises(FileFormatError, match="no such file"):
        load_smpl(tmp_path / "absent.npz")


def test_lying_headers(tmp_path):
    """Every cut of an array, and sizes that are not there: an error, and no memory on a header's word."""
    path = tmp_path / "model.npz"
    plain = {}
    for name, array in arrays().items():
        file = io.BytesIO()
        np.save(file, array)
        plain[name] = file.getvalue()
    whole = plain["posedirs"]
    swaps = {
        b"(40, 3, 45), ": b"(400000, 45),",
        b"(40, 3, 45)": b"(-40,3,-45)",
        b"(40, 3, ": b"(40, ((( ",
        b"<f8": b"|V0",
    }
    for other in [*(whole.replace(a, b) for a, b in swaps.items()), *(whole[:cut] for cut in (0, 5, 9, 60, 200, 5000))]:
        assert other != whole
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (plain | {"posedirs": other}).items():
                archive.writestr(f"{name}.npy", data)
        with pytest.raises(FileFormatError, match="posedirs"):
            load_smpl(path)


def test_bytes_turned_over(tmp_path):
    """Any byte of the archive changed: an error, or a model that can be posed."""
    path = written(tmp_path)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 300):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        path.write_bytes(bytes(changed))
        try:
            model = load_smpl(path)
        except FileFormatError:
            continue
        assert model.apply(model.state()).vertices.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_wrong_state(tmp_path):
    model = load_smpl(written(tmp_path))
    with pytest.raises(ShapeError, match="state: expected numbers of shapes and joints"):
        model.apply(replace(model.state(), shape=torch.zeros(9)))
