"""`TupleProducts`: the geometric products of tuples of points, and what of them rotations leave or carry along."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from geom.checks import check_choice, check_integer
from geom.clifford.algebra import EGA
from geom.roots import safe_norm, safe_sqrt

__all__ = ["TupleProducts"]

Blades = tuple[int, ...]
Place = tuple[int, int]  # where in the tuple a product starts, and of how many points it is
MODES = ("single", "partial", "full")

_VECTOR, _EVEN, _ODD = (tuple(i for i, k in enumerate(EGA.grades) if k in grades) for grades in ((1,), (0, 2), (1, 3)))
_ALL = tuple(range(EGA.size))
_TABLE = EGA.table("geometric").permute(1, 2, 0).tolist()  # by left factor, right factor, product
_LEAST = 1e-7  # the norm that a normalised product is divided by at least


@dataclass(frozen=True)
class TupleProducts:
    """Which products of k points p_1 p_2 ... p_k, in the algebra `EGA` of space, an attention over tuples looks at.

    Points are vectors (3,) or, with `multivector`, multivectors (8,) in the order of `EGA.blades`, where a vector v is
    pad(v, (1, 4)). Products of vectors have even or odd grades alone, four numbers. A mode names the products of a
    tuple (Spellings, 2021, arXiv 2110.02393, section 3): "single" is the whole, "partial" every p_1 ... p_j, "full"
    every run p_i ... p_j.

    Invariants of a product are its scalar, the norms of its vector and its bivector, and its trivector, whose sign a
    reflection changes: as many as it has grades. Covariants are three numbers that turn with vector points (the vector,
    or the dual of the bivector), or the whole product of multivector ones.

    Args:
        rank: k, the points of a tuple.
        multivector: whether points are multivectors.
        invariants, covariants: the mode of each.
        normalized: whether each product also counts divided by its norm (by 1e-7 at least).
        linear_terms: how many learned sums of products, and of their duals, count as further products; none of rank 1.
        linear: the mode of those.
    Raises: ShapeError for a rank below 1, an unknown mode, or fewer than 0 linear terms.

    >>> TupleProducts(rank=3, invariants="full").invariant_count
    9

    Guarantees: differentiable (products of length 0); deterministic; 1e-15 f64, 1e-6 f32
    """

    rank: int = 2
    multivector: bool = False
    invariants: str = "single"
    covariants: str = "partial"
    normalized: bool = False
    linear_terms: int = 0
    linear: str = "partial"

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("linear_terms", 0)):
            check_integer(getattr(self, name), name, least)
        for name in ("invariants", "covariants", "linear"):
            check_choice(getattr(self, name), MODES, name)

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The numbers of a point, and of a covariant: 3 or 8."""
        return EGA.size if self.multivector else 3

    @property
    def terms(self) -> int:
        """The linear terms there are: of single points there are none."""
        return self.linear_terms if self.rank > 1 else 0

    def places(self, mode: str) -> list[Place]:
        """The products of a mode."""
        k = self.rank
        if mode == "single":
            return [(0, k)]
        if mode == "partial":
            return [(0, length) for length in range(k, 0, -1)]
        return [(start, length) for start in range(k) for length in range(k - start, 0, -1)]

    def blades(self, length: int) -> Blades:
        """The components that a product of so many points has."""
        if self.multivector:
            return _ALL
        return _VECTOR if length == 1 else (_EVEN, _ODD)[length % 2]

    @property
    def invariant_count(self) -> int:
        """The numbers that `invariants` of a tuple are."""
        of = [len({EGA.grades[i] for i in self.blades(length)}) for _, length in self.places(self.invariants)]
        return sum(of) * (1 + self.normalized) + self.terms * (4 if self.multivector else 2)

    @property
    def covariant_count(self) -> int:
        """How many covariants a tuple has."""
        return len(self.places(self.covariants)) * (1 + self.normalized) + self.terms

    @property
    def linear_shape(self) -> tuple[int, int, int, int]:
        """Of the gates of the linear terms: (terms, products, ways, 2)."""
        return self.terms, len(self.places(self.linear)), 4 if self.multivector else 2, 2

    # --- products -----------------------------------------------------------------------------------------------------

    def powers(self, points: Tensor, longest: int) -> list[Tensor]:
        """All products of 1, 2, ..., `longest` points: (b, n, ..., n, blades) of points (b, n, size)."""
        found = [points]
        while len(found) < longest:
            found.append(self.lengthen(found[-1], points))
        return found

    def lengthen(self, product: Tensor, points: Tensor) -> Tensor:
        """Each of the products (b, m, n, ..., n, blades) times each of the points (b, n, size): one axis n more.

        One matrix product, of the products with the points as matrices that multiply from the right, keeps nothing of
        the tuples for the derivative but the products.
        """
        length = product.ndim - 2
        left, right, out = self.blades(length), self.blades(1), self.blades(length + 1)
        table = points.new_tensor(_TABLE)[list(left)][:, list(right)][:, :, list(out)]
        batch, n = points.shape[:2]
        matrix = torch.einsum("bnk,jki->bjni", points, table).reshape(batch, len(left), n * len(out))
        flat = product.reshape(batch, product.shape[1:-1].numel(), len(left)) @ matrix
        return flat.reshape(*product.shape[:-1], n, len(out))

    def spread(self, powers: list[Tensor], rows: slice, mode: str) -> list[Tensor]:
        """The products of a mode for the tuples whose first point is one of `rows`, with axes of 1 for the rest.

        Of `powers`, the last is of whole tuples and has those rows only.
        """
        found = []
        for start, length in self.places(mode):
            x = powers[length - 1]
            x = x[:, rows] if start == 0 and length < self.rank else x
            axes = x.shape[1:-1]
            found.append(x.reshape(x.shape[0], *[1] * start, *axes, *[1] * (self.rank - start - length), x.shape[-1]))
        return found

    # --- what rotations leave, and what they carry along --------------------------------------------------------------

    def invariants_of(self, products: list[Tensor], linear: list[Tensor]) -> Float[Tensor, "b *tuple invariants"]:
        """All of `invariant_count`, of the products of that mode and of the linear terms."""
        every = self._with_normalized(self.places(self.invariants), products)
        found = [_invariants(x, self.blades(length)) for length, x in every]
        found += [_invariants(x, self.blades(self.rank)) for x in linear]
        shape = torch.broadcast_shapes(*(x.shape[:-1] for x in [*found, *products, *linear]))
        return torch.cat([x.expand(*shape, x.shape[-1]) for x in found], -1)

    def covariants_of(self, products: list[Tensor], linear: list[Tensor]) -> list[Tensor]:
        """All of `covariant_count` (b, *tuple, size), whose axes of tuples broadcast."""
        every = self._with_normalized(self.places(self.covariants), products)
        return [self._covariant(x, length) for length, x in every] + [self._covariant(x, self.rank) for x in linear]

    def linear_of(self, products: list[Tensor], gates: Tensor) -> list[Tensor]:
        """Sums over products of (g_0 - g_1) p, for multivectors too of (g_2 - g_3) dual(p), of gates g.

        Vector products of the other parity than the tuple's enter as their duals.
        """
        weight = gates.softmax(-1)[..., 1]
        weight = weight[..., 0::2] - weight[..., 1::2]
        terms = [self._sides(x, length) for (_, length), x in zip(self.places(self.linear), products, strict=True)]
        found = []
        for own in weight:
            parts = [
                g * side for sides, row in zip(terms, own, strict=True) for g, side in zip(row, sides, strict=True)
            ]
            found.append(sum(parts[1:], start=parts[0]))
        return found

    def _sides(self, product: Tensor, length: int) -> list[Tensor]:
        """What a linear term weighs of a product: of multivectors it and its dual; of vectors what has the parity of
        the tuple's product, it or its dual."""
        if self.multivector:
            return [product, _dual(product)]
        if length == 1:
            product = torch.nn.functional.pad(product, (0, 1))
        return [product if (self.rank - length) % 2 == 0 else _dual(product) * (1 - 2 * (self.rank % 2))]

    def _with_normalized(self, places: list[Place], products: list[Tensor]) -> list[tuple[int, Tensor]]:
        """The products with their lengths, then again divided by their norms."""
        every = [(length, x) for (_, length), x in zip(places, products, strict=True)]
        if self.normalized:
            every += [(length, x / safe_norm(x)[..., None].clamp(min=_LEAST)) for length, x in every]
        return every

    def _covariant(self, product: Tensor, length: int) -> Tensor:
        if self.multivector or length == 1:
            return product
        return -_dual(product)[..., :3] if length % 2 == 0 else product[..., :3]


def _invariants(product: Tensor, blades: Blades) -> Tensor:
    """The scalar, the norm of the vector and of the bivector, the trivector: what there is of these.

    A norm below the rounding of the whole product is 0, with derivative 0: that of the bivector of p p, whose
    derivatives would be noise, of the second order noise of any size.
    """
    squares = product.square()
    least = (16 * torch.finfo(product.dtype).eps) ** 2 * squares.detach().sum(-1)
    found, begin = [], 0
    for grade in sorted({EGA.grades[i] for i in blades}):
        end = begin + sum(EGA.grades[i] == grade for i in blades)
        if grade in (0, 3):
            found.append(product[..., begin:end])
        else:
            square = squares[..., begin:end].sum(-1)
            found.append(safe_sqrt(torch.where(square <= least, 0.0, square))[..., None])
        begin = end
    return torch.cat(found, -1)


def _dual(product: Tensor) -> Tensor:
    """e123 times a product: all of its components, or the even or the odd ones."""
    signs = (-1, -1, 1, -1, 1, -1, 1, 1) if product.shape[-1] == 8 else (-1, 1, -1, 1)
    return product.flip(-1) * product.new_tensor(signs)
