"""Rotations and rigid motions: geom.lie, roma, pypose, scipy and pytorch3d's formulas, how fast and how exact."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.given import choose
from benchmarks.harness import Case, Contender
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER
from benchmarks.rotation_peers import Given, Library, formulas, geom, pypose, roma, scipy, textbook
from benchmarks.rows import judged, untimed

__all__ = ["NOTES", "REFERENCE", "cases", "draw", "inputs", "rotations_of", "round_trip_errors", "wrong_ways"]

REFERENCE = BEST_PEER
NOTES = [
    "the cases' names say how many rotations a call takes; every round does the same work, on inputs in the library's "
    "own types and layouts; results are new memory, whose first touch is much of the time of what is cheap and large",
    "float32, but scipy, which has float64 only; pytorch3d has no wheel: its formulas, in torch",
    "slerp has a step for each pair, in all but geom as a exp(t log(a^-1 b)) of the library's own functions; with one "
    "step for all, roma's is unitquat_slerp",
    "gradient of log(exp): forward and backward of its sum",
    "error_abs: the largest in any number of the result, against pytorch3d's formulas in float64 on the float32 input "
    "(its quaternions and matrices made unit); rotations by up to 3.14; Euler angles by the matrix they stand for",
    "accuracy: largest relative error of log(exp(v)), by quaternion and by matrix, and largest error of its Jacobian, "
    "over 259 axes and 18 angles from 0 to pi; 1 stands for all that is worse, NaN too; slerps of uniform pairs are "
    "wrong where they are not half-way on the shorter arc",
    "pypose's gradients are tangent vectors at quaternions, so by matrix, where that is forgotten, they are wrong at "
    "every angle",
]
_ACCURACY = "accuracy"
_SIZES = ("1000", "100000", "1000000")
_ANGLES = [0, 1e-12, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 2, 3, *(np.pi - x for x in (1e-2, 1e-3, 1e-4, 1e-5,
           1e-7, 0))]  # fmt: skip
_PATHS = {"quaternion": ("exp", "log"), "matrix": ("vector to matrix", "matrix to vector")}
_PAIRS = 2_000_000
_DOUBLE = "scipy f64"
_LIBRARIES = [
    ("geom", ("geom", geom)),
    ("roma", ("roma", roma)),
    ("pypose", ("pypose", pypose)),
    ("torch", ("pytorch3d formulas", formulas)),
    ("scipy", (_DOUBLE, scipy)),
]


def inputs(names: tuple[str, ...]) -> list[str]:
    """The cases of these names. Raises: GeomError for a name that is not there."""
    return choose([*_SIZES, _ACCURACY], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    chosen = inputs(request.inputs) or [*(_SIZES[:1] if request.quick else _SIZES), _ACCURACY]
    if request.clock == "wall" and request.device == "cpu":  # the errors are the same on all threads
        chosen = [name for name in chosen if name != _ACCURACY]
    found, missing = installed(_LIBRARIES)
    libraries = {name: make() for name, make in found}

    def make() -> Iterator[Case]:
        for name in chosen:
            if name == _ACCURACY:
                yield _accuracy(libraries, _PAIRS // 10 if request.quick else _PAIRS)
            else:
                yield _speed(name, libraries, request)

    return len(chosen), make(), missing


def draw(count: int) -> Given:
    """Float32, rotations by angles uniform in [0, 3.14]: farther than rounding from pi, where logarithms jump."""
    generator = torch.Generator().manual_seed(count)
    normal = lambda *shape: torch.randn(count, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    uniform = lambda *shape: torch.rand(count, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    turn = lambda: 3.14 * uniform(1) * torch.nn.functional.normalize(normal(3), dim=-1)  # noqa: E731
    known = formulas()
    rotvec = turn()
    start, step = known["exp"].call(turn()), known["exp"].call(turn())
    matrix = known["quaternion to matrix"].call(start)
    given = Given(
        rotvec=rotvec,
        start=start,
        end=known["compose"].call(start, step),
        t=uniform(),
        matrix=matrix,
        vector=normal(3),
        columns=matrix[..., :2].mT.flatten(-2) + 0.2 * normal(6),
        angles=(2 * uniform(3) - 1) * torch.tensor([torch.pi, torch.pi / 2, torch.pi], dtype=torch.float64),
        twist=torch.cat([normal(3), turn()], -1),
        here=normal(3),
        there=normal(3),
    )
    return given.to(torch.float32)


def rotations_of(given: Given) -> Given:
    """In float64, with the unit quaternions and rotation matrices that the given ones are but for their rounding."""
    exact, known = given.to(torch.float64), formulas()
    unit = torch.nn.functional.normalize(torch.stack([exact.start, exact.end]), dim=-1)
    matrix = known["quaternion to matrix"].call(known["matrix to quaternion"].call(exact.matrix))
    return exact._replace(start=unit[0], end=unit[1], matrix=matrix)


def _speed(name: str, libraries: dict[str, Library], request: Request) -> Case:
    count, known = int(name), formulas()
    given = draw(count)
    exact, placed = rotations_of(given), given.to(request.device)
    calls = min(5 if request.quick else 50, max(1, 300_000 // count))  # the clock is coarse

    @cache
    def truth(method: str) -> Tensor:
        if method == "matrix to Euler":
            return exact.matrix
        return known[method].read(known[method].call(*known[method].prepare(exact)))

    def contender(library: str, method: str) -> Contender:
        operation = libraries[library][method]

        def start(seed: int) -> Callable[[], Any]:
            operands = operation.prepare(placed)
            return lambda: operation.call(*operands)

        def judge(output: Any) -> dict[str, float]:
            found = operation.read(output).detach().double().cpu()
            found = known["Euler to matrix"].call(found) if method == "matrix to Euler" else found
            return {"error_abs": _error(found, truth(method))}

        return Contender(library, method, start, judged(judge), calls)

    return Case(
        name, [contender(library, method) for method in known for library in libraries if method in libraries[library]]
    )


def _error(found: Tensor, truth: Tensor) -> float:
    if truth.shape[-1:] == (4,):  # a quaternion's sign is free
        found = torch.where((found * truth).sum(-1, keepdim=True) < 0, -found, found)
    return float((found - truth).abs().nan_to_num(nan=1e9, posinf=1e9).max())  # JSON has neither


def _accuracy(libraries: dict[str, Library], pairs: int) -> Case:
    def contender(name: str, library: Library) -> Contender:
        def work() -> dict[str, float]:
            scores = {}
            for path, (out, back) in _PATHS.items():
                if out not in library:
                    continue
                for kind, dtype in (("f32", torch.float32), ("f64", torch.float64)):
                    if name != _DOUBLE or dtype == torch.float64:
                        value, gradient = round_trip_errors(library, out, back, dtype)
                        scores[f"{path}_{kind}"] = value
                        if gradient is not None:
                            scores[f"{path}_gradient_{kind}"] = gradient
            return {**scores, "wrong_slerps": wrong_ways(library, pairs)}

        return untimed(name, "log(exp)", work)

    everyone = {**libraries, "trace and acos": textbook()}
    note = f"{pairs} uniform pairs for slerp"
    return Case(_ACCURACY, [contender(*item) for item in everyone.items()], note, timed=False)


def round_trip_errors(library: Library, out: str, back: str, dtype: torch.dtype) -> tuple[float, float | None]:
    """Worst relative error of `back(out(v))`, and worst error of its Jacobian, None where there is none."""
    axes = torch.randn(256, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = torch.cat([torch.nn.functional.normalize(axes, dim=-1), torch.eye(3, dtype=torch.float64)])
    rotvec = (torch.tensor(_ANGLES, dtype=torch.float64)[:, None, None] * axes).flatten(0, 1).to(dtype)
    leaf = rotvec.clone().requires_grad_()
    there, again = library[out], library[back]
    found = again.read(again.call(there.call(*there.prepare(Given._make([leaf] * len(Given._fields))))))
    jacobian = None
    if found.requires_grad:
        rows = [torch.autograd.grad(found[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3)]
        jacobian = torch.stack(rows, 1).numpy()
    return _compare(rotvec.numpy(), found.detach().numpy(), jacobian)


def _compare(rotvec: NDArray[Any], found: NDArray[Any], jacobian: NDArray[Any] | None) -> tuple[float, float | None]:
    """To v and to I, or to what they are on the other side of pi where v rounds to an angle that close."""
    v, eye = rotvec.astype(np.longdouble), np.eye(3)
    size = np.sqrt((v * v).sum(-1))
    length = np.where(size == 0, 1, size)
    turn = 2 * np.longdouble("3.14159265358979323846264338") / length
    close = size > np.pi - 4 * np.pi * np.finfo(rotvec.dtype).eps
    axis = v / length[:, None]

    def worst(errors: NDArray[Any], other: NDArray[Any]) -> float:
        errors = np.where(close, np.fmin(errors, other), errors)
        return float(np.nan_to_num(errors, nan=1.0, posinf=1.0).max().clip(max=1))

    def distance(target: NDArray[Any]) -> NDArray[Any]:
        return np.sqrt(((found - target) ** 2).sum(-1)) / length

    value = worst(distance(v), distance(v * (1 - turn)[:, None]))
    if jacobian is None:
        return value, None
    across = eye - axis[:, :, None] * axis[:, None, :]
    errors = [np.abs(jacobian - x).max((1, 2)) for x in (eye, eye - turn[:, None, None] * across)]
    return value, worst(*errors)


def wrong_ways(library: Library, pairs: int) -> float:
    """How many slerps of uniform pairs are not half-way on the shorter arc to 1e-3; equal arcs may go either way."""
    generator = torch.Generator().manual_seed(0)
    start, end = torch.nn.functional.normalize(torch.randn(2, pairs, 4, generator=generator), dim=-1)
    half = torch.full((pairs,), 0.5)
    given = Given._make([start] * len(Given._fields))._replace(end=end, t=half)
    known = formulas()
    middle = known["slerp"].call(*known["slerp"].prepare(given.to(torch.float64)))
    found = library["slerp"].read(library["slerp"].call(*library["slerp"].prepare(given))).double()
    off = known["distance"].call(middle, found)
    equal = torch.pi - known["distance"].call(start.double(), end.double()) < 1e-6
    return float((((off > 1e-3) | off.isnan()) & ~equal).sum())
