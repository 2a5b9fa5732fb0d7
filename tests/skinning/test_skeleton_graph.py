"""Graphs of skeletons: the voxels and chains of small ones by hand, the topology of random ones."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from geom.errors import ShapeError
from geom.skinning.skeleton_graph import skeleton_graph
from geom.skinning.skeletonization import skeletonize

WINDOWS = [(a, b, c) for a in (1, 2) for b in (1, 2) for c in (1, 2)]


def drawn(*rows: str) -> Tensor:
    return torch.tensor([[letter == "#" for letter in row] for row in rows])


def rings(vertices: Tensor, edges: Tensor) -> tuple[int, int]:
    """Components, and edges beyond those of a tree for each."""
    matrix = coo_array((np.ones(len(edges)), tuple(edges.T.numpy())), (len(vertices),) * 2)
    components = connected_components(matrix, directed=False)[0]
    return components, len(edges) - len(vertices) + components


def tunnels(volume: np.ndarray) -> int:
    """Zeros that one loop of ones goes round, in an image: pieces of the zeros but the outer one."""
    return int(label(~np.pad(volume, 1))[1]) - 1  # type: ignore[index]


def test_a_fork_and_a_lone_voxel() -> None:
    skeleton = drawn("#...#..", ".#.#...", "..#....", "..#...#", "..#....")
    vertices, edges = skeleton_graph(skeleton)
    assert vertices.tolist() == [[0, 0], [0, 4], [2, 2], [3, 6], [4, 2]]
    assert edges.tolist() == [[0, 2], [1, 2], [2, 4]]
    vertices, edges = skeleton_graph(skeleton, steps=1)
    assert len(vertices) == int(skeleton.sum()) and len(edges) == 6


def test_a_ring_becomes_a_triangle_and_one_of_two_parallel_chains_is_cut() -> None:
    vertices, edges = skeleton_graph(drawn(".###.", "#...#", ".###."))
    assert len(vertices) == len(edges) == 3
    assert rings(vertices, edges) == (1, 1)
    vertices, edges = skeleton_graph(drawn("..###..", "##...##", "..###.."))  # two chains between two branch points
    assert rings(vertices, edges) == (1, 1)
    assert vertices.tolist() == [[1, 0], [1, 1], [1, 5], [1, 6], [2, 3]]
    assert edges.tolist() == [[0, 1], [1, 2], [1, 4], [2, 3], [2, 4]]


def test_corners_of_a_block_are_joined_by_its_sides() -> None:
    vertices, edges = skeleton_graph(drawn("#..", "##.", "..#"), steps=1)
    assert vertices.tolist() == [[0, 0], [1, 0], [1, 1], [2, 2]]
    assert edges.tolist() == [[0, 1], [1, 2], [2, 3]]  # not the diagonal from (0, 0) to (1, 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_no_edge_stands_for_more_steps_than_allowed(steps: int) -> None:
    line = torch.zeros(3, 3, 30)
    line[1, 1, 2:28] = 1
    vertices, edges = skeleton_graph(line, steps=steps)
    length = (vertices[edges[:, 0]] - vertices[edges[:, 1]]).abs().amax(-1)
    assert length.sum() == 25 and length.max() <= steps
    assert len(edges) == -(-25 // steps)  # no more of them than that takes


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_the_topology_of_random_skeletons(steps: int | None) -> None:
    noise = np.random.default_rng(0)
    flat = np.stack([gaussian_filter(noise.normal(size=(30, 31)), s) > 0 for s in np.linspace(0.4, 2, 20)])
    for image in skeletonize(torch.from_numpy(flat)[:, None])[:, 0]:
        vertices, edges = skeleton_graph(image, steps=steps)
        assert rings(vertices, edges) == (label(image.numpy(), np.ones((3, 3)))[1], tunnels(image.numpy()))  # type: ignore[index]
        assert bool(image[tuple(vertices.T)].all())
    solid = np.stack([gaussian_filter(noise.normal(size=(14, 15, 13)), s) > 0.03 for s in np.linspace(0.5, 1.5, 20)])
    checked = 0
    for volume in skeletonize(torch.from_numpy(solid)[:, None])[:, 0]:
        x = np.pad(volume.numpy(), 1)
        if label(~x)[1] == 1:  # type: ignore[index]
            corners = [np.lib.stride_tricks.sliding_window_view(x, w).any((3, 4, 5)).sum() for w in WINDOWS]
            euler = sum((-1) ** w.count(1) * int(n) for w, n in zip(WINDOWS, corners, strict=True))
            components = label(x, np.ones((3, 3, 3)))[1]  # type: ignore[index]
            assert rings(*skeleton_graph(volume, steps=steps)) == (components, components - euler)
            checked += components - euler
    assert checked > 50


def test_dtypes_and_nothing() -> None:
    image = drawn("#..#", ".##.", "....")
    for skeleton in (image, image.float(), image.double() * 0.8):
        vertices, edges = skeleton_graph(skeleton)
        assert vertices.tolist() == [[0, 0], [0, 3]] and edges.tolist() == [[0, 1]]
        assert vertices.dtype == edges.dtype == torch.int64
    vertices, edges = skeleton_graph(torch.zeros(4, 5, 6))
    assert vertices.shape == (0, 3) and edges.shape == (0, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("skeleton", "steps", "message"),
    [
        (torch.zeros(1, 1, 5, 5), None, r"\(H, W\) or \(D, H, W\), got a float32 tensor of shape \(1, 1, 5, 5\)"),
        (torch.zeros(5, 5, dtype=torch.int64), None, "expected a float32, float64 or bool tensor"),
        (None, None, "got a NoneType"),
        (torch.zeros(5, 5), 0, "steps: expected None or an int of at least 1, got int 0"),
    ],
)
def test_wrong_input(skeleton: Any, steps: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        skeleton_graph(skeleton, steps=steps)
