"""Every number of pytorch3d's golden outputs for points: neighbours, balls, farthest points, Chamfer distances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geom.compat.pytorch3d import loss, ops


def load(data: Path, name: str) -> dict[str, Any]:
    path = data / "pytorch3d" / name
    if not path.is_file():
        pytest.skip(f"no {name} in the data folder")
    return {k: torch.from_numpy(v) for k, v in np.load(path).items() if v.dtype.kind != "U"}


def check(golden: dict[str, Tensor], made: dict[str, Tensor], inputs: set[str]) -> None:
    """Each key is either an input or reproduced: indices equal, numbers to 1e-5."""
    assert made.keys() | inputs == golden.keys()
    for key, value in made.items():
        want = golden[key]
        assert value.shape == want.shape and value.dtype == want.dtype, key
        if want.is_floating_point():
            assert torch.allclose(value, want, rtol=1e-5, atol=1e-5), key
        else:
            assert torch.equal(value, want), key


def test_knn(data: Path) -> None:
    z = load(data, "p3d_knn_norm2.npz")
    p1, p2 = z["p1"].requires_grad_(), z["p2"].requires_grad_()
    found = ops.knn_points(p1, p2, z["lengths1"], z["lengths2"], norm=int(z["norm"]), K=int(z["K"]), return_nn=True)
    made = {"dists": found.dists, "idx": found.idx, "nn": found.knn}
    made["grad_p1"], made["grad_p2"] = torch.autograd.grad(found.dists.sum(), (p1, p2))
    check(z, made, {"p1", "p2", "lengths1", "lengths2", "K", "norm"})


def test_ball_query(data: Path) -> None:
    z = load(data, "p3d_ball_query.npz")
    found = ops.ball_query(
        z["p1"], z["p2"], z["lengths1"], z["lengths2"], K=int(z["K"]), radius=float(z["radius"]), return_nn=False
    )
    assert found.knn is None
    inputs = {"p1", "p2", "lengths1", "lengths2", "K", "radius"}
    check(z, {"dists": found.dists, "idx": found.idx}, inputs)


def test_farthest_points(data: Path) -> None:
    z = load(data, "p3d_fps.npz")
    selected, idx = ops.sample_farthest_points(z["points"], z["lengths"], int(z["K"]))
    check(z, {"selected": selected, "idx": idx}, {"points", "lengths", "K"})
    assert torch.equal(selected, z["selected"])


def test_chamfer(data: Path) -> None:
    z = load(data, "p3d_chamfer.npz")
    x, y = z["x"].requires_grad_(), z["y"].requires_grad_()
    lengths = {"x_lengths": z["x_lengths"], "y_lengths": z["y_lengths"]}
    made: dict[str, Any] = {}
    for points in ("mean", "sum", "max", None):
        for batch in ("mean", "sum", None) if points else (None,):
            for single in (False, True):
                for norm in (1, 2):
                    key = f"loss_{points}_{batch}_single{single}_n{norm}"
                    value, normals = loss.chamfer_distance(
                        x, y, **lengths, batch_reduction=batch, point_reduction=points, norm=norm,
                        single_directional=single,
                    )  # fmt: skip
                    assert normals is None
                    if isinstance(value, tuple):
                        made |= {f"{key}_{i}": v for i, v in enumerate(value)}
                    else:
                        made[key] = value
    value, normals = loss.chamfer_distance(
        x, y, **lengths, x_normals=z["x_normals"], y_normals=z["y_normals"], weights=z["weights"]
    )
    made["loss_default_weighted"], made["normals_default_weighted"] = value, normals
    made["grad_x"], made["grad_y"] = torch.autograd.grad(made["loss_mean_mean_singleFalse_n2"], (x, y))
    inputs = {"x", "y", "x_lengths", "y_lengths", "x_normals", "y_normals", "weights"}
    check(z, {k: v.detach() for k, v in made.items()}, inputs)
