"""Tracks: symmetric traceless tensors of degree 2 and 3 beside multivectors, which have scalars and vectors alone.

A track of degree l has the 2 l + 1 components of e3nn's irreps 2e and 3o, in the order and with the sizes of its
spherical harmonics of "norm" normalisation. Inside networks they are planes t[l] (2 l + 1, ..., C_l), components
first, as multivectors are (16, ..., C).
"""

import math
from collections.abc import Mapping
from functools import cache
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from geom.checks import check_choice, check_integer, check_shape
from geom.errors import ShapeError

__all__ = [
    "_DEGREES",
    "TrackHeads",
    "TrackProducts",
    "Tracks",
    "check_tracks",
    "coupling",
    "harmonics",
    "normalise_tracks",
]

Tracks = dict[int, Tensor]

_FLOOR = 0.01
_HALF = math.sqrt(3) / 2
_THIRD = math.sqrt(5 / 8)
_FOURTH = math.sqrt(3 / 8)
# the harmonic polynomials of each degree: monomials and their factors
_POLYNOMIALS: dict[int, list[dict[str, float]]] = {
    0: [{"": 1}],
    1: [{"x": 1}, {"y": 1}, {"z": 1}],
    2: [
        {"xz": 2 * _HALF},
        {"xy": 2 * _HALF},
        {"yy": 1, "xx": -0.5, "zz": -0.5},
        {"yz": 2 * _HALF},
        {"zz": _HALF, "xx": -_HALF},
    ],
    3: [
        {"xzz": 3 * _THIRD, "xxx": -_THIRD},
        {"xyz": math.sqrt(15)},
        {"xyy": 4 * _FOURTH, "xxx": -_FOURTH, "xzz": -_FOURTH},
        {"yyy": 1, "xxy": -1.5, "yzz": -1.5},
        {"yyz": 4 * _FOURTH, "xxz": -_FOURTH, "zzz": -_FOURTH},
        {"yzz": math.sqrt(15) / 2, "xxy": -math.sqrt(15) / 2},
        {"zzz": _THIRD, "xxz": -3 * _THIRD},
    ],
}
_DEGREES = (2, 3)


def harmonics(vector: Float[Tensor, "*b 3"], degree: int) -> Float[Tensor, "*b m"]:
    """The track v v .. v without its traces, of size |v|^degree: e3nn's spherical harmonics, "norm", not normalised.

    Args: vector (..., 3), of a length, so metres, say; degree, 2 or 3. Returns: (..., 5) or (..., 7), its unit to the
    power of the degree. Raises: ShapeError.

    >>> harmonics(torch.tensor([0.0, 2.0, 0.0]), 2).tolist()
    [0.0, 0.0, 4.0, 0.0, 0.0]

    Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of |v|^degree
    """
    check_choice(degree, _DEGREES, "degree")
    x = dict(zip("xyz", check_shape(vector, (3,), "vector").unbind(-1), strict=True))
    parts = []
    for polynomial in _POLYNOMIALS[degree]:
        terms = (math.prod((x[axis] for axis in axes), start=factor) for axes, factor in polynomial.items())
        parts.append(sum(terms))
    return torch.stack(parts, -1)


@cache
def _tensors(degree: int) -> Tensor:
    """The symmetric tensors (2 l + 1, 3, .., 3) of the polynomials, float64."""
    every = torch.zeros(2 * degree + 1, *(3,) * degree, dtype=torch.float64)
    for row, polynomial in zip(every, _POLYNOMIALS[degree], strict=True):
        for axes, factor in polynomial.items():
            places = list(permutations("xyz".index(axis) for axis in axes))
            for place in places:
                row[place] += factor / len(places)
    return every


def coupling(a: int, b: int, c: int) -> Float[Tensor, "a b c"]:
    """C with t_k = sum_ij C_ijk u_i v_j, which makes a track of degree c of those of degrees a and b, float64.

    It joins as many indices of the tensors as must go, takes traces away, and so is there for triangles of degrees with
    an even sum: vectors, degree 1, are polar, and every track is made of them. Its size is such that independent
    components of variance 1 give those of variance 1; it is e3nn's wigner_3j times sqrt(2 c + 1), to a sign.

    Args: a, b, c, from 0 to 3. Raises: ShapeError.

    Guarantees: not differentiable; deterministic; 4e-16
    """
    for degree, name in ((a, "a"), (b, "b"), (c, "c")):
        check_choice(degree, _POLYNOMIALS, name)
    if (a + b + c) % 2 or not abs(a - b) <= c <= a + b:
        raise ShapeError(f"a, b and c: expected a triangle with an even sum, got {a}, {b} and {c}")
    return torch.tensor(_coupling(a, b, c), dtype=torch.float64)


@cache
def _coupling(a: int, b: int, c: int) -> list[list[list[float]]]:
    ab, ac, bc = "ijk"[: (a + b - c) // 2], "lmn"[: (a + c - b) // 2], "pqr"[: (b + c - a) // 2]
    table = torch.einsum(f"x{ab}{ac},y{ab}{bc},z{ac}{bc}->xyz", _tensors(a), _tensors(b), _tensors(c))
    return (table * (math.sqrt(2 * c + 1) / table.norm())).tolist()


def _results(a: int, b: int, degrees: tuple[int, ...]) -> tuple[int, ...]:
    """The degrees that products of those of a and b have; scalars of vectors are in the multivectors' products."""
    return tuple(c for c in (0, *degrees) if abs(a - b) <= c <= a + b and not (a + b + c) % 2 and (c or a > 1))


@cache
def _table(a: int, b: int, results: tuple[int, ...]) -> list[list[float]]:
    """All couplings of two degrees as one matrix from their pairs of components."""
    return torch.cat([coupling(a, b, c).flatten(0, 1).T for c in results]).tolist()


def normalise_tracks(tracks: Tracks) -> Tracks:
    """Each degree over sqrt(max(mean over channels of |t|^2, 0.01)), as `EquiLayerNorm` has it.

    Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32 of the greatest entry
    """
    return {
        degree: t * t.square().sum(0).mean(-1, keepdim=True).clamp(min=_FLOOR).rsqrt() for degree, t in tracks.items()
    }


class TrackProducts(nn.Module):
    """Products of tracks and of the vectors of multivectors, as new tracks, vectors and scalars.

    The vectors that translations leave are normals of planes, and, made polar by the weight of a reference, directions
    of lines. Of each degree, 1 being vectors, come a left and a right factor for every product, as many as the most
    tracks, and of each two degrees all `coupling`s. Their linear maps are new tracks, times gates by scalars; vectors
    in the parts of multivectors that translations leave, e0i, and, by the reference, e0ij, lines and points at
    infinity; and scalars.

    Args:
        channels, scalars: how many multivectors and scalars come and go.
        tracks: how many tracks come and go, by degree.
        begin: whether none come yet, and those of degree 2 are to be made of vectors.
        end: whether none go, but vectors and scalars alone.
        generator: of the first weights.

    The call: x (16, ..., C), s (..., S), t with planes (2 l + 1, ..., C_l) of each degree l, weight (...), e123 of
        the reference. The result: what to add to each, of tracks {} where none go.
    Raises: ShapeError.

    Guarantees: differentiable (any order); deterministic; 4e-15 f64, 2e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        channels: int,
        scalars: int,
        tracks: Mapping[int, int],
        *,
        begin: bool = False,
        end: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tracks = check_tracks(tracks)
        self.width = max(tracks.values())
        degrees, wanted = (1,) if begin else (1, *self.tracks), (1,) if end else (1, *self.tracks)
        pairs = [(a, b, _results(a, b, wanted)) for a in degrees for b in degrees if a <= b]
        self.pairs = [pair for pair in pairs if pair[2]]
        ins = outs = {0: scalars, 1: 2 * channels, **self.tracks}
        counts = {c: self.width * sum(c in found for *_, found in self.pairs) for c in outs}
        self.factors = nn.ParameterDict({str(a): _weight(2 * self.width, ins[a], generator) for a in degrees})
        self.outs = nn.ParameterDict(
            {str(c): _weight(out, counts[c], generator, 1.0 if c > 1 else 0.1) for c, out in outs.items() if counts[c]}
        )
        self.gates = None if end else _weight(sum(self.tracks.values()), scalars, generator)

    def forward(self, x: Tensor, s: Tensor, t: Tracks, weight: Tensor) -> tuple[Tensor, Tensor, Tracks]:
        # direction (x, y, z) of lines is e23, -e13, e12, and that of points at infinity -e023, e013, -e012
        turned = x.new_tensor([1, -1, 1]).reshape(3, *(1,) * (x.ndim - 1))
        vectors = torch.cat([x[2:5], x[8:11].flip(0) * turned * weight[..., None]], -1)
        factors = {degree: linear(own, self.factors[str(degree)]) for degree, own in {1: vectors, **t}.items()}
        found: dict[int, list[Tensor]] = {}
        for a, b, results in self.pairs:
            left, right = factors[a][..., : self.width], factors[b][..., self.width :]
            every = (left[:, None] * right).flatten(0, 1)
            parts = (x.new_tensor(_table(a, b, results)) @ every.flatten(1)).unflatten(1, every.shape[1:])
            for c, part in zip(results, parts.split([2 * c + 1 for c in results]), strict=True):
                found.setdefault(c, []).append(part)
        made = {c: linear(torch.cat(parts, -1), self.outs[str(c)]) for c, parts in found.items()}
        change, more = torch.zeros_like(x), torch.zeros_like(s)
        if 1 in made:
            lines, points = made[1].chunk(2, -1)
            parts = [change[:5], lines, change[8:11], points.flip(0) * turned * -weight[..., None], change[14:]]
            change, more = torch.cat(parts), made[0][0]
        if self.gates is None:
            return change, more, {}
        gates = torch.sigmoid(linear(s, self.gates)).split(list(self.tracks.values()), -1)
        new = {
            degree: made[degree] * gate if degree in made else s.new_zeros(2 * degree + 1, *gate.shape)
            for degree, gate in zip(self.tracks, gates, strict=True)
        }
        return change, more, new


class TrackHeads(nn.Module):
    """Tracks in attention: features whose products are added to the logits of heads, and values.

    Args: tracks, how many come and go, by degree; heads, of queries; few, those of keys and values; increase: of C
        tracks each head has max(increase C // heads, 1); generator of the first weights.

    Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
    """

    def __init__(
        self,
        tracks: Mapping[int, int],
        *,
        heads: int,
        few: int,
        increase: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tracks, self.counts = check_tracks(tracks), (heads, few, few)
        self.sizes = {degree: max(increase * count // heads, 1) for degree, count in self.tracks.items()}
        every = heads + 2 * few
        self.ins = nn.ParameterDict(
            {str(degree): _weight(every * self.sizes[degree], own, generator) for degree, own in self.tracks.items()}
        )
        self.outs = nn.ParameterDict(
            {str(k): _weight(own, heads * self.sizes[k], generator, 0.1) for k, own in self.tracks.items()}
        )

    def split(self, t: Tracks) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries, keys and values (..., n, heads, D) of planes (2 l + 1, ..., n, C_l).

        Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
        """
        parts = []
        for degree, own in t.items():
            y = linear(own, self.ins[str(degree)]).unflatten(-1, (sum(self.counts), -1))
            parts.append(y.movedim(0, -1).flatten(-2))
        queries, keys, values = torch.cat(parts, -1).split(self.counts, -2)
        return queries, keys, values

    def join(self, out: Tensor) -> Tracks:
        """The planes of attended values (..., n, heads, D).

        Guarantees: differentiable (any order); deterministic; 2e-15 f64, 1e-6 f32 of the greatest entry
        """
        parts = out.split([(2 * degree + 1) * size for degree, size in self.sizes.items()], -1)
        found = {}
        for (degree, size), part in zip(self.sizes.items(), parts, strict=True):
            y = part.unflatten(-1, (size, 2 * degree + 1)).movedim(-1, 0).flatten(-2)
            found[degree] = linear(y, self.outs[str(degree)])
        return found


def _weight(out: int, into: int, generator: torch.Generator | None, size: float = 1.0) -> nn.Parameter:
    """Uniform, of variance size^2 / into."""
    bound = size * math.sqrt(3 / into)
    return nn.Parameter(torch.empty(out, into).uniform_(-bound, bound, generator=generator))


def check_tracks(tracks: Mapping[int, int]) -> dict[int, int]:
    """Return numbers of channels, at least 1, of degree 2 and perhaps 3, by degree. Raises: ShapeError.

    Guarantees: not differentiable; deterministic; exact
    """
    for degree, count in tracks.items():
        check_choice(degree, _DEGREES, "tracks")
        check_integer(count, f"tracks[{degree}]")
    if 2 not in tracks:
        raise ShapeError(f"tracks: expected channels of degree 2, got {dict(tracks)}")
    return dict(sorted(tracks.items()))
