"""`Algebra`: the geometric algebra of a signature, with its tables and its operations on multivectors."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from geom.checks import check_choice, check_integer, check_shape
from geom.clifford import products
from geom.clifford.exponential import cosine_and_sine, inverse_sine
from geom.errors import ShapeError
from geom.kernels.blades import PRODUCTS, Terms, blades, complement_signs, metric, multiply_blades, terms
from geom.roots import safe_sqrt

__all__ = ["CGA", "EGA", "PGA", "STA", "Algebra"]


@dataclass(frozen=True)
class Algebra:
    """The geometric algebra of p basis vectors of square +1, q of -1 and r of 0.

    Null vectors come first, then positive, then negative ones, numbered from 0: `PGA`, G(3,0,1), has e0 of square 0 and
    e1, e2, e3 of square 1. Multivectors are plain float tensors (..., B), their last axis the B = 2^(p+q+r) blades by
    grade, lexicographic within, so 1 | e0 e1 e2 e3 | e01 e02 e03 e12 e13 e23 | e012 e013 e023 e123 | e0123 for `PGA`.
    Batches broadcast. Ready-made: `EGA` G(3,0,0), Euclidean; `PGA` G(3,0,1), projective, of points, planes and motions;
    `CGA` G(4,1,0), conformal; `STA` G(1,3,0), of space and time.

    Args: p, q, r, at least 0, with a sum of 1 to 8.
    Fields: blades, the basis vectors of each component; grades, of each component; squares, <reverse(e_I) e_I> of each
    blade e_I, the weights of `inner_product`, 0 where it has a null vector.
    Raises: ShapeError.

    >>> e1, e2 = torch.eye(8, dtype=torch.float64)[1:3]
    >>> EGA.geometric_product(e1, e2).tolist() == torch.eye(8)[EGA.blades.index((0, 1))].tolist()
    True

    Guarantees: differentiable; deterministic; as each method says
    """

    p: int
    q: int = 0
    r: int = 0
    blades: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    grades: tuple[int, ...] = field(init=False, repr=False, compare=False)
    squares: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _signs: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, count in zip("pqr", self.signature, strict=True):
            check_integer(count, name, 0)
        if not 1 <= self.dimension <= 8:
            raise ShapeError(f"p + q + r: expected 1 to 8 basis vectors, got {self.dimension}")
        every, of = blades(self.signature), metric(self.signature)
        # plain attributes, which torch.compile reads as constants
        object.__setattr__(self, "blades", every)
        object.__setattr__(self, "grades", tuple(map(len, every)))
        object.__setattr__(self, "squares", tuple(math.prod(of[v] for v in blade) for blade in every))
        object.__setattr__(self, "_signs", complement_signs(self.signature))

    # --- tables -------------------------------------------------------------------------------------------------------

    @property
    def signature(self) -> tuple[int, int, int]:
        """(p, q, r)."""
        return self.p, self.q, self.r

    @property
    def dimension(self) -> int:
        """The number of basis vectors, and the highest grade."""
        return self.p + self.q + self.r

    @property
    def size(self) -> int:
        """The number of blades."""
        return 1 << self.dimension

    def grade_slice(self, k: int) -> slice:
        """Where the components of grade k stand. Raises: ShapeError for another grade."""
        check_choice(k, range(self.dimension + 1), "k")
        start = self.grades.index(k)
        return slice(start, start + self.grades.count(k))

    @property
    def volume(self) -> int:
        """The component whose blade is the product of all vectors that are not null: e123 of G(3,0,1)."""
        return self.blades.index(tuple(range(self.r, self.dimension)))

    def table(self, product: str) -> Int8[Tensor, "blades blades blades"]:
        """T with out_i = sum_jk T_ijk x_j y_k of "geometric", "outer" or "join". Raises: ShapeError for another."""
        check_choice(product, PRODUCTS, "product")
        return products.table(self.signature, product)

    def terms(self, product: str) -> Terms:
        """The entries of `table` that are not 0, as tuples (i, j, k, sign)."""
        check_choice(product, PRODUCTS, "product")
        return terms(self.signature, product)

    def embed(self, components: Float[Tensor, "*b parts"], k: int = 1) -> Float[Tensor, "*b blades"]:
        """Numbers as the components of grade k, and 0 in all others: vectors (x, y, z) of `EGA`, (t, x, y, z) of `STA`.

        The mass of a particle of energy and momentum (E, p) is `STA.norm(STA.embed(...))`.

        Args: components (..., n choose k), in the order of `blades`.
        Raises: ShapeError for another last axis, or a grade that the algebra has not.

        Guarantees: differentiable (any order); deterministic; exact
        """
        place = self.grade_slice(k)
        check_shape(components, (place.stop - place.start,), "components")
        return torch.nn.functional.pad(components, (place.start, self.size - place.stop))

    def extract(self, multivector: Float[Tensor, "*b blades"], k: int = 1) -> Float[Tensor, "*b parts"]:
        """The components of grade k, (..., n choose k): the inverse of `embed`. Raises: ShapeError.

        Guarantees: differentiable (any order); deterministic; exact
        """
        return self._check(multivector, "multivector")[..., self.grade_slice(k)]

    # --- products -----------------------------------------------------------------------------------------------------

    def geometric_product(
        self, x: Float[Tensor, "*a blades"], y: Float[Tensor, "*b blades"]
    ) -> Float[Tensor, "*c blades"]:
        """x y, the associative product with v v = the square of v for vectors.

        Raises: ShapeError where the last axis is not the blades, for other dtypes than each other's, or batches that do
        not broadcast.

        Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
        """
        return products.multiply(self.signature, "geometric", x, y)

    def outer_product(self, x: Float[Tensor, "*a blades"], y: Float[Tensor, "*b blades"]) -> Float[Tensor, "*c blades"]:
        """x ^ y, the terms of x y whose blades share no vector. Of planes of `PGA` it is what they have in common.

        Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
        """
        return products.multiply(self.signature, "outer", x, y)

    def join(
        self,
        x: Float[Tensor, "*a blades"],
        y: Float[Tensor, "*b blades"],
        reference: Float[Tensor, "*c blades"] | None = None,
    ) -> Float[Tensor, "*d blades"]:
        """dual(dual(x) ^ dual(y)), the line through points of `PGA`, the plane through a line and a point.

        The dual not being equivariant, this changes sign under reflections. With `reference`, any multivector that
        transforms as x and y do, it is multiplied by its component `volume` (e123 for `PGA`), which does so too, and is
        then equivariant under all of Pin(p, q, r). The signs are those of GATr (Brehmer et al., 2023), which takes the
        dual twice instead of its inverse: join(x, pseudoscalar) is -x for x of odd grade in `PGA`.

        Guarantees: differentiable (any order); deterministic; 1e-15 f64, 6e-7 f32 of the greatest entry
        """
        joined = products.multiply(self.signature, "join", x, y)
        if reference is None:
            return joined
        joined, reference = products.align(self.signature, joined, reference, "x and reference")
        return joined * reference[..., self.volume, None]

    def inner_product(self, x: Float[Tensor, "*a blades"], y: Float[Tensor, "*b blades"]) -> Float[Tensor, "*c"]:
        """<x, y> = <reverse(x) y>, the scalar part: sum over blades of x_I y_I squares_I. Invariant under Pin(p, q, r).

        Guarantees: differentiable (any order); deterministic; 4e-16 f64, 3e-7 f32 of the sum of the terms' sizes
        """
        x, y = products.align(self.signature, x, y)
        return (x * y) @ x.new_tensor(self.squares)

    def sandwich(self, u: Float[Tensor, "*a blades"], x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*c blades"]:
        """How a versor u, a product of vectors with inverses, acts on x: u x u^-1, or u involute(x) u^-1 for odd u.

        u^-1 = reverse(u) / <reverse(u) u>, with 1 for the denominator where it is 0, as for what is no versor. u is odd
        where its odd components are the greater.

        Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32 of |u|^2 |x|, u being unit
        """
        u, x = products.align(self.signature, u, x, "u and x")
        sign = u.new_tensor([(-1) ** grade for grade in self.grades])
        odd = (u.square() @ sign)[..., None] < 0
        square = self.inner_product(u, u)[..., None]
        inverse = self.reverse(u) / torch.where(square == 0, torch.ones_like(square), square)
        return self.geometric_product(self.geometric_product(u, torch.where(odd, sign * x, x)), inverse)

    # --- bivectors and versors ----------------------------------------------------------------------------------------

    def exp(self, bivector: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """exp(B) = sum_k B^k / k! of the bivector B, the part of grade 2: a versor, which turns by twice B.

        Of `EGA` and `STA` it is a rotor, of `PGA` a motor: exp(-theta e12 / 2) turns by theta from e1 to e2, and
        exp(-e0 t / 2) shifts by t; see `embedding.embed_twist`. In closed form (see `geom.clifford.exponential`), the
        same for any angle, also where B is the sum of two commuting bivectors in one way, many or none. Boosts overflow
        where B^2 is above 7e3 (float32) or 5e5 (float64).

        Raises: ShapeError outside 2 to 5 basis vectors, and where there are two or more of square +1 and of -1, as
        those squares of commuting bivectors may then be complex.

        >>> turn = torch.zeros(8)
        >>> turn[EGA.blades.index((0, 1))] = -torch.pi / 4
        >>> EGA.extract(EGA.sandwich(EGA.exp(turn), EGA.embed(torch.tensor([1.0, 0, 0]))))[1].round(decimals=5).item()
        1.0

        Guarantees: differentiable (any order; 0, pi); deterministic; 1e-15 f64, 6e-7 f32 of 1 and |B|
        """
        b = self.grade(self._check_planes(bivector, "bivector"), 2)
        four = self.outer_product(b, b) if self.dimension > 3 else torch.zeros_like(b)
        c0, c1, d0, d1 = cosine_and_sine(-self.inner_product(b, b), self.inner_product(four, four))
        versor = d0[..., None] * b
        if self.dimension > 3:
            versor = versor + d1[..., None] * self.grade(self.geometric_product(b, four), 2) + c1[..., None] * four
        return torch.cat([c0[..., None], versor[..., 1:]], -1)

    def log(self, versor: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """The least bivector B with exp(B) = M or -M, which act alike, of a unit even versor M: that of scalar >= 0.

        Angles are then at most pi. At angle pi, scalar 0, both turns are right; the one of the sign given is returned.

        Args: versor (..., B), of even grade, <M, M> = 1, as `exp` and `embedding.embed_motion` give it; its odd grades
        are not read. In 4 or 5 dimensions, where a versor is of grade 4 alone, as of half turns in two planes at once,
        no bivector is told from others, and 0 is returned.
        Raises: ShapeError as `exp`.

        Guarantees: differentiable (any order; 0, pi); deterministic; 2e-15 f64, 1e-6 f32 of 1 and |B|
        """
        m = self._check_planes(versor, "versor")
        m = torch.where(m[..., :1] < 0, -m, m)
        two = self.grade(m, 2)
        four = self.grade(m, 4) if self.dimension > 3 else torch.zeros_like(m)
        g0, g1 = inverse_sine(m[..., 0], self.inner_product(four, four))
        bivector = g0[..., None] * two
        if self.dimension > 3:
            bivector = bivector + g1[..., None] * self.grade(self.geometric_product(two, four), 2)
        return bivector

    # --- maps ---------------------------------------------------------------------------------------------------------

    def reverse(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """The order of the factors of each blade reversed: (-1)^(k (k-1) / 2) on grade k.

        Guarantees: differentiable (any order); deterministic; exact
        """
        return x * self._check(x, "x").new_tensor([(-1) ** (k * (k - 1) // 2) for k in self.grades])

    def involute(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """Each vector negated: (-1)^k on grade k.

        Guarantees: differentiable (any order); deterministic; exact
        """
        return x * self._check(x, "x").new_tensor([(-1) ** k for k in self.grades])

    def dual(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """The right complement: e_J ^ dual(e_J) is the pseudoscalar. Not equivariant; dual of dual is (-1)^(k (n-k)).

        Guarantees: differentiable (any order); deterministic; exact
        """
        return self._check(x, "x").flip(-1) * x.new_tensor(self._signs)

    def undual(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b blades"]:
        """The left complement, the inverse of `dual`.

        Guarantees: differentiable (any order); deterministic; exact
        """
        return (self._check(x, "x") * x.new_tensor(self._signs)).flip(-1)

    def grade(self, x: Float[Tensor, "*b blades"], k: int) -> Float[Tensor, "*b blades"]:
        """<x>_k: x with 0 outside grade k.

        Raises: ShapeError for a grade that the algebra has not.

        Guarantees: differentiable (any order); deterministic; exact
        """
        check_choice(k, range(self.dimension + 1), "k")
        return x * self._check(x, "x").new_tensor([float(grade == k) for grade in self.grades])

    # --- invariants ---------------------------------------------------------------------------------------------------

    def norm(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b"]:
        """sqrt |<x, x>|, with derivative 0 where it is 0.

        Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32
        """
        return safe_sqrt(self.inner_product(x, x).abs())

    def invariants(self, x: Float[Tensor, "*b blades"]) -> Float[Tensor, "*b grades"]:
        """The scalar component, and the norms of grades 1 to n: invariant under Pin(p, q, r).

        Guarantees: differentiable (0); deterministic; 4e-16 f64, 3e-7 f32
        """
        self._check(x, "x")
        weights = x.new_zeros((self.size, self.dimension))
        for i, (grade, square) in enumerate(zip(self.grades, self.squares, strict=True)):
            if grade:
                weights[i, grade - 1] = square
        return torch.cat([x[..., :1], safe_sqrt((x.square() @ weights).abs())], -1)

    def linear_basis(self) -> Float[Tensor, "maps blades blades"]:
        """Maps (M, B, B) that commute with the action of Pin(p, q, r), each of Frobenius norm 1, float64.

        The projections to each grade, and for r > 0 those followed by multiplication with the null vectors, e0 <x>_k,
        which no reflection moves. For r = 0 and r = 1 these span all such maps (Brehmer et al., 2023, Proposition 1):
        n + 1, and 2 n + 1, so 9 for `PGA`.

        Guarantees: not differentiable; deterministic; 2e-16 f64
        """
        every = self.blades
        of = metric(self.signature)
        maps = []
        for null in blades((0, 0, self.r)):
            for k in range(self.dimension + 1):
                basis = torch.zeros(self.size, self.size, dtype=torch.float64)
                for j, blade in enumerate(every):
                    product, sign = multiply_blades(null, blade, of)
                    if len(blade) == k and sign:
                        basis[every.index(product), j] = sign
                if basis.any():
                    maps.append(basis / basis.norm())
        return torch.stack(maps)

    def _check_planes(self, x: Tensor, name: str) -> Tensor:
        if not 2 <= self.dimension <= 5 or min(self.p, self.q) > 1:
            raise ShapeError(
                "exp and log: expected 2 to 5 basis vectors, at most one of square +1 or at most one of square -1, got "
                f"G{self.signature}"
            )
        return self._check(x, name)

    def _check(self, x: Tensor, name: str) -> Tensor:
        return check_shape(x, (self.size,), name)


EGA = Algebra(3, 0, 0)
PGA = Algebra(3, 0, 1)
CGA = Algebra(4, 1, 0)
STA = Algebra(1, 3, 0)
