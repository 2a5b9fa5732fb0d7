"""Clips of motion capture: what rod they show, a first guess of it, and its parameters in a file."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import describe
from geom.errors import FileFormatError, ShapeError
from geom.files import write_atomically
from geom.rods.identify import fill_gaps
from geom.rods.rod import DAMPING, Rod, make_rod
from geom.values import replace

__all__ = ["Cable", "branched_errors", "guess_rod", "load_cable", "save_cable"]


class Cable(NamedTuple):
    """A rod as clips show it: clamped vertices and held edges (all between clamped vertices if None), rate, frames a
    second, substeps of a frame, and the branches (vertex, number of own vertices) after the parent's own vertices."""

    rod: Rod
    clamped: tuple[int, ...]
    held: tuple[int, ...] | None = None
    rate: float = 100.0
    substeps: int = 4
    branches: tuple[tuple[int, int], ...] = ()


def guess_rod(
    track: Float[Tensor, "clips t n 3"],
    *,
    branches: Sequence[tuple[int, int]] = (),
    straight: bool = False,
    linear_density: float = 0.02,
    marker_mass: float = 0.0,
    EI: float = 5e-4,
    GJ: float = 3e-4,
    EA: float = 1e3,
    viscosity: float = 0.01,
) -> Rod:
    """A rod to start `identify` from: edges of their mean length in the clips, naturally curved as it is seen in the
    first frame, and plain numbers for the rest.

    Args:
        track: metres; of a branched rod first the parent's vertices, then each branch's own (without the junction's).
        branches: (vertex of the parent, number of own vertices) of each.
        straight: naturally straight instead, but where branches leave.
        linear_density: kg/m, and marker_mass, kg, of each vertex: how a clamped rod moves depends on EI / mass alone,
            so these may be as good as any; light ends of branches need short substeps.
        EI, GJ: N m^2. EA: N. viscosity: s.
    Raises: ShapeError.

    Guarantees: not differentiable; deterministic; float32 and float64
    """
    if track.ndim != 4:
        raise ShapeError(f"track: expected (clips, t, n, 3), got {describe(track)}")
    seen = fill_gaps(track)
    n = track.shape[2]
    own = [n - sum(count for _, count in branches), *(count for _, count in branches)]
    if min(own) < 1 or any(not 0 < vertex < own[0] for vertex, _ in branches):
        raise ShapeError(
            f"branches: expected vertices of the parent and numbers of own vertices, {n} with the parent's in all, "
            f"got {list(branches)}"
        )
    offsets = torch.tensor([0, *own]).cumsum(0)
    joined = [(vertex, i + 1) for i, (vertex, _) in enumerate(branches)]
    rod = make_rod(
        seen[0, 0],
        EI=EI,
        GJ=GJ,
        EA=EA,
        linear_density=linear_density,
        offsets=offsets.to(track.device),
        junctions=joined,
        straight=straight,
        drag=0.5,
        quadratic_drag=0.1,
        viscosity=viscosity,
    )
    edge = rod.parent >= 0
    before = rod.parent.clamp(min=0)
    length = torch.where(edge, (seen - seen[:, :, before]).norm(dim=-1).mean((0, 1)), 0.0)
    half = 0.5 * linear_density * length
    return replace(rod, length=length, mass=marker_mass + half.index_add(0, before, half))


def branched_errors(
    predicted: Float[Tensor, "clips t n 3"],
    track: Float[Tensor, "clips t n 3"],
    branches: Sequence[tuple[int, int]],
) -> Float[Tensor, "clips"]:
    """DEFT's score of each clip, metres: every rod, with its copy of the junction's vertex, on as many places as the
    parent has vertices, those left over counting as right:
    sqrt(sum over the frames from the third of (squared errors / (3 rods n_parent)) / number of all frames).

    Guarantees: differentiable; deterministic; 1e-6 f32
    """
    parent = track.shape[2] - sum(count for _, count in branches)
    copies = torch.tensor([vertex for vertex, _ in branches], dtype=torch.int64, device=track.device)
    square = (predicted - track)[:, 2:].square().sum(-1)
    total = square.sum(-1) + square[..., copies].sum(-1)
    return (total / (3 * (1 + len(branches)) * parent)).sum(1).div(track.shape[1]).sqrt()


def save_cable(path: str | os.PathLike[str], cable: Cable, report: dict[str, Any] | None = None) -> None:
    """Write a cable as JSON, numbers in SI units; `report`, whatever is worth knowing of its fit, is kept beside.

    A failed write leaves the old file.

    Guarantees: not differentiable; deterministic; every float as it is
    """
    rod = {f.name: getattr(cable.rod, f.name).tolist() for f in dataclasses.fields(Rod)}
    rod["stretch_stiffness"] = [None if math.isinf(x) else x for x in rod["stretch_stiffness"]]  # JSON has no inf
    rest = {name: x for name, x in cable._asdict().items() if name != "rod"}
    record = {"geom": "cable", **rest, "rod": rod, "report": report or {}}
    lines = [f" {json.dumps(name)}: {_lines(x)}" for name, x in record.items()]
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _lines(x: object) -> str:
    if not isinstance(x, dict) or not x:
        return json.dumps(x)
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in x.items()) + "\n }"


def load_cable(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Cable:
    """Read what `save_cable` wrote.

    Raises: FileFormatError for another file, or one whose numbers do not fit together; OSError as `open` would.

    Guarantees: not differentiable; deterministic; every float as written
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        record = json.loads(data)
        if not isinstance(record, dict) or record.get("geom") != "cable":
            raise ValueError("no cable")
        fields = {}
        for f in dataclasses.fields(Rod):
            kind = torch.int64 if f.name == "parent" else dtype
            entry = record["rod"][f.name]
            if f.name == "stretch_stiffness":
                entry = [math.inf if x is None else x for x in entry]
            fields[f.name] = torch.tensor(entry, dtype=kind)
        rod = Rod(**fields)
        n = len(rod.parent)
        for name, x in fields.items():
            own = (2,) if name in ("bend_stiffness", "curvature") else ()
            expected = () if name in DAMPING else (n, *own)
            if x.shape != expected or bool(x.isnan().any()):
                raise ValueError(f"{name} of shape {tuple(x.shape)}, not {expected}")
        index = torch.arange(n)
        if n < 3 or int(rod.parent[0]) != -1 or bool((rod.parent >= index).any()) or int(rod.parent.min()) < -1:
            raise ValueError("parent that is no tree")
        if bool((fields["mass"] <= 0).any()) or bool((fields["length"][1:] <= 0).any()):
            raise ValueError("masses or lengths not above 0")
        held = record["held"]
        return Cable(
            rod,
            tuple(int(v) for v in record["clamped"]),
            None if held is None else tuple(int(v) for v in held),
            float(record["rate"]),
            int(record["substeps"]),
            tuple((int(a), int(b)) for a, b in record["branches"]),
        )
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise FileFormatError(path, f"expected the parameters of a cable, got {error!r}") from error
