"""Skinning by matrices and by dual quaternions, with and without gradients, and biharmonic weights: geom, torch's forms
and libigl."""

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.given import choose, data_folder
from benchmarks.harness import Case
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER
from benchmarks.rows import contenders, untimed
from benchmarks.skinning_peers import (
    Given,
    geom,
    libigl,
    torch_bag,
    torch_dense,
    torch_gather,
)
from geom.lie import quaternion, se3

__all__ = ["NOTES", "REFERENCE", "cases", "draw", "inputs", "read_hand", "score", "truths", "weigh"]

REFERENCE = BEST_PEER
NOTES = [
    "drawn: 100,000 vertices, 52 rigid bones, 4 of them at each vertex; hand: libigl's tetrahedra of a hand, 20 bones, "
    "bounded biharmonic weights, of which the 4 greatest are kept and made to sum to 1; all float32, libigl float64",
    "torch gather: the rows of each vertex's bones side by side; torch dense: a matrix product with the weights of all "
    "bones; torch bag: embedding_bag; libigl: lbs_matrix, made ahead, times the bones; it has no dual quaternions in "
    "Python. torch's dual quaternions are given as such, geom makes them from matrices inside the clock",
    "with gradient: forward, and the gradients of weights and bones; dense weights: (V, J) with zeros, where torch "
    "dense has its own form",
    "hand weights: bounded biharmonic weights of the hand's 20 bones, CPU seconds of one run; energy: of the solution "
    "before rows are divided by their sums, 1/2 tr W^T L M^-1 L W in means of its diagonal; bounds: how far weights "
    "leave [0, 1]; row sums: the furthest from 1; KKT: geom's residual of the minimum, in the units of the weights",
    "error: the largest, of the largest number there is, from the same formulas in float64",
]
_HAND, _DRAWN, _WEIGHTS = "hand", "drawn", "hand weights"
_VERTICES = 500_000  # of a run, in as many calls: the clock is coarse, and caches are cold
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("torch", ("torch gather", torch_gather)),
    ("torch", ("torch dense", torch_dense)),
    ("torch", ("torch bag", torch_bag)),
    ("igl", ("libigl", libigl)),
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The cases of these names. Raises: GeomError for a name that is not there."""
    return choose(_known(), names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    chosen = inputs(request.inputs) or ([_DRAWN] if request.quick else _known())
    if request.clock != "cpu" or request.device != "cpu":
        chosen = [name for name in chosen if name != _WEIGHTS]  # once is enough
    found, missing = installed(_LIBRARIES)

    def make() -> Iterator[Case]:
        for name in chosen:
            if name == _WEIGHTS:
                libraries = [library for library, _ in found]
                rows = [untimed(x, "BBW:", partial(weigh, x)) for x in ("geom", "libigl") if x in libraries]
                yield Case(name, rows, timed=False)
                continue
            given = read_hand() if name == _HAND else draw(2_000 if request.quick else 100_000, 52)
            libraries = [(library, start(given, request.device)) for library, start in found]
            calls = 1 if request.quick else max(1, _VERTICES // len(given.vertices))
            rows = contenders(libraries, score, truths(given), lambda method, calls=calls: calls)
            yield Case(name, rows, f"{len(given.vertices):,} vertices, {len(given.bones)} bones")

    return len(chosen), make(), missing


def _known() -> list[str]:
    return [*([_WEIGHTS, _HAND] if _hand_file().is_file() else []), _DRAWN]


def _hand_file() -> Path:
    return data_folder() / "skinning" / "igl" / "hand_bbw_libigl263.npz"


def read_hand() -> Given:
    """The vertices of the hand's tetrahedra, and its weights."""
    with np.load(_hand_file()) as file:
        vertices, weights = file["V"].astype(np.float32), file["W_raw"]
    return _complete(vertices, weights)


def draw(count: int, joints: int) -> Given:
    """Vertices, and weights of any four bones for each."""
    random = np.random.default_rng(0)
    weights = np.where(random.random((count, joints)).argsort(1) < 4, random.random((count, joints)), 0)
    return _complete(random.standard_normal((count, 3)).astype(np.float32), weights)


def weigh(library: str) -> dict[str, float]:
    """Bounded biharmonic weights of the hand: CPU seconds, and how good the minimum is."""
    from geom.skinning import biharmonic_weights
    from geom.skinning.volume import tetrahedral_laplacian, voronoi_volumes

    with np.load(_hand_file()) as file:
        x, values = file["V"].astype(np.float64), file["bc"].astype(np.float64)
        tets, fixed = file["T"].astype(np.int64), file["b"].astype(np.int64)
    vertices, elements = torch.from_numpy(x), torch.from_numpy(tets)
    scores: dict[str, float] = {}
    if library == "geom":
        how = (vertices, elements, torch.from_numpy(fixed), torch.from_numpy(values))
        biharmonic_weights(*how[:2], how[2][:1], how[3][:1, :1])  # the kernel is compiled
        begin = time.process_time()
        bound = biharmonic_weights(*how)
        scores["cpu_s"] = time.process_time() - begin
        weights, sums = bound.raw, bound.weights.sum(1)
        scores["KKT"] = bound.residual
    else:
        import igl

        begin = time.process_time()
        solved = igl.bbw(x, tets, fixed, values)
        scores["cpu_s"] = time.process_time() - begin
        weights = torch.from_numpy(np.asarray(solved[-1] if isinstance(solved, tuple) else solved))
        sums = weights.sum(1)
    stiffness = tetrahedral_laplacian(vertices, elements).coalesce()
    mass, (row, column) = voronoi_volumes(vertices, elements), stiffness.indices()
    diagonal = torch.zeros_like(mass).index_add(0, row, stiffness.values().square() / mass[column])
    free = torch.ones(len(x), dtype=torch.bool).index_fill(0, torch.from_numpy(fixed), False)
    energy = 0.5 * ((stiffness @ weights).square() / mass[:, None]).sum() / diagonal[free].mean()
    scores["energy"] = float(energy)
    scores["bounds"] = max(0.0, float(torch.maximum(-weights, weights - 1).max()))
    return {**scores, "row_sums": float((sums - 1).abs().max())}


def _complete(vertices: NDArray[np.float32], weights: NDArray[Any]) -> Given:
    """The four greatest weights of each vertex, and random rigid bones."""
    count, joints = weights.shape
    indices = np.argsort(-weights, 1, kind="stable")[:, :4]
    kept = np.take_along_axis(weights, indices, 1).astype(np.float64).clip(min=0)
    kept = (kept / kept.sum(1, keepdims=True)).astype(np.float32)
    dense = np.zeros((count, joints), dtype=np.float32)
    np.put_along_axis(dense, indices, kept, 1)
    generator = torch.Generator().manual_seed(0)
    quat = quaternion.random(joints, generator=generator)
    shift = torch.randn(joints, 3, generator=generator)
    bones = torch.cat([quaternion.to_matrix(quat), shift[..., None]], -1)
    motions = se3.to_dual_quaternion(quat, shift)
    grad = torch.randn(count, 3, generator=generator)
    arrays: tuple[Any, ...] = (
        vertices,
        kept,
        indices.astype(np.int64),
        dense,
        bones.numpy(),
        motions.numpy(),
        grad.numpy(),
    )
    return Given(*map(np.ascontiguousarray, arrays))


def truths(given: Given) -> Callable[[str], list[NDArray[np.float64]]]:
    """What each method should find, computed once, in float64 by the forms of torch."""
    exact = Given(*(x if x.dtype == np.int64 else x.astype(np.float64) for x in given))  # type: ignore[arg-type]
    forms = {**torch_dense(exact, "cpu"), **torch_gather(exact, "cpu")}

    @cache
    def truth(method: str) -> list[NDArray[np.float64]]:
        return forms[method].read(forms[method].call())

    return truth


def score(method: str, found: list[NDArray[np.float64]], truth: list[NDArray[np.float64]]) -> dict[str, float]:
    """Gradients of dense weights where the truth has sparse ones are left out, and those of bones that are matrices
    where it has dual quaternions."""
    pairs = [(a, b) for a, b in zip(found, truth, strict=True) if a.shape == b.shape]
    return {"error_rel": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)}
