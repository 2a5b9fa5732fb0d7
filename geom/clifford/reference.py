"""What clouds of multivectors have in common: shapes, the reference of their joins, and their centres."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_choice, check_offsets, check_shape, describe
from geom.clifford.algebra import PGA
from geom.clifford.embedding import embed_translation
from geom.errors import ShapeError
from geom.nn.scatter import scatter

__all__ = ["centre_of", "check_clouds", "join_reference", "translate", "weight_of"]


def check_clouds(
    multivectors: object,
    scalars: object,
    counts: tuple[int, int],
    *,
    name: str = "multivectors",
    blades: int = PGA.size,
    axes: int = 1,
    batched: bool = True,
    required: bool = False,
) -> None:
    """Raise ShapeError unless a network can take these: multivectors (..., n, channels, blades), scalars (..., n, S).

    Args: counts, of channels and of scalars; axes, of items, 2 in grids; batched, whether there may be others before
        them; required, whether scalars may not be None where there are some.
    """
    channels, count = counts
    if (
        not isinstance(multivectors, Tensor)
        or multivectors.shape[-2:] != (channels, blades)
        or multivectors.ndim < axes + 2
        or (multivectors.ndim > axes + 2 and not batched)
    ):
        items = "..., " * batched + ("n" if axes == 1 else "i, j")
        raise ShapeError(f"{name}: expected a tensor ({items}, {channels}, {blades}), got {describe(multivectors)}")
    wanted = (*multivectors.shape[:-2], count)
    missing = scalars is None and required and count > 0
    if missing or (scalars is not None and not (isinstance(scalars, Tensor) and scalars.shape == wanted)):
        raise ShapeError(f"scalars: expected {f'shape {wanted}' if count else None}, got {describe(scalars)}")


def join_reference(
    multivectors: Float[Tensor, "*b n c 16"],
    kind: str = "data",
    *,
    offsets: Int64[Tensor, "clouds"] | None = None,
    axes: int = 1,
) -> Float[Tensor, "*r 1 16"]:
    """The reference multivector of each cloud, as `PGA.join` wants it: it turns joins where a reflection turns space.

    Args:
        multivectors (..., n, C, 16).
        kind: "data", the mean over the items and channels of a cloud, which transforms as they do; or "canonical", e123
            + e0123, which does not: networks with it are equivariant to proper motions only.
        offsets: of clouds that stand one after the other, (N, C, 16).
        axes: how many axes of items there are, 2 in grids.

    Returns: (..., 1, 1, 16), or (N, 1, 16) with offsets. Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    check_choice(kind, ("data", "canonical"), "kind")
    check_shape(multivectors, (PGA.size,), "multivectors")
    if kind == "canonical":
        e123 = [float(blade in ((1, 2, 3), (0, 1, 2, 3))) for blade in PGA.blades]
        return multivectors.new_tensor(e123).reshape((1,) * (multivectors.ndim - 1) + (PGA.size,))
    if offsets is None:
        return multivectors.mean(tuple(range(-2 - axes, -1)), keepdim=True)
    return cloud_means(multivectors.mean(-2, keepdim=True), offsets)


def cloud_means(x: Tensor, offsets: Tensor) -> Tensor:
    """The mean of each cloud of x (N, ...), for each of its items.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    lengths = check_offsets(offsets, len(x), device=x.device).diff()
    own = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths, output_size=len(x))
    return scatter(x, own, len(lengths), reduce="mean")[own]


def weight_of(reference: str | Tensor, multivectors: Tensor, *, offsets: Tensor | None = None, axes: int = 1) -> Tensor:
    """e123 of a reference (..., 1, 16), or one of a kind, for every item of multivectors (..., C, 16): (...).

    Args: as of `join_reference`. Raises: ShapeError.

    Guarantees: differentiable; deterministic; exact
    """
    if isinstance(reference, str):
        reference = join_reference(multivectors, reference, offsets=offsets, axes=axes)
    check_shape(reference, (1, PGA.size), "reference")
    try:
        return reference[..., 0, PGA.volume].expand(multivectors.shape[:-2])
    except RuntimeError:
        raise ShapeError(
            f"reference: expected to broadcast to {(*multivectors.shape[:-2], 1, PGA.size)}, got {describe(reference)}"
        ) from None


def centre_of(
    multivectors: Float[Tensor, "*b n c 16"], *, offsets: Int64[Tensor, "clouds"] | None = None, axes: int = 1
) -> Float[Tensor, "*r 3"]:
    """The point c with the least sum of |v - w c|^2 over the points of a cloud, v / w with weights w = e123.

    It moves as the multivectors do; where they hold no point, it is the origin.

    Args: as of `join_reference`. Returns: (..., 1, 1, 3), or (N, 1, 3) with offsets. Raises: ShapeError.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32
    """
    weight = check_shape(multivectors, (PGA.size,), "multivectors")[..., 14:15]
    parts = multivectors[..., 11:14].flip(-1) * multivectors.new_tensor([-1, 1, -1])
    sums = torch.cat([weight * parts, weight.square()], -1)
    sums = (
        sums.mean(tuple(range(-2 - axes, -1)), keepdim=True)
        if offsets is None
        else cloud_means(sums.mean(-2, keepdim=True), offsets)
    )
    square = sums[..., 3:]
    return sums[..., :3] / torch.where(square == 0, torch.ones_like(square), square)


def translate(multivectors: Float[Tensor, "*b 16"], translation: Float[Tensor, "*t 3"]) -> Float[Tensor, "*b 16"]:
    """Multivectors moved by translations that broadcast: T x T^-1.

    Guarantees: differentiable; deterministic; 1e-15 f64, 6e-7 f32 of |t|^2 |x|
    """
    mover = embed_translation(translation)
    return PGA.geometric_product(PGA.geometric_product(mover, multivectors), PGA.reverse(mover))
