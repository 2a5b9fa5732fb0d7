"""`Corrective`: what flesh does as joints bend, a sparse network from rotations to offsets of the surface at rest."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_positive, check_shape, describe
from geom.errors import ShapeError
from geom.values import Value, value

__all__ = ["Corrective", "make_corrective", "pose_feature"]


def pose_feature(rotations: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 6"]:
    """The first two columns of R - I, one after the other: 0 for a joint at rest, and smooth for every other.

    Args: rotations (..., 3, 3).
    Returns: (..., 6).

    >>> pose_feature(torch.eye(3)).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    Guarantees: differentiable (0, pi); deterministic; 1e-16 f64, 6e-8 f32
    """
    one = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    return (rotations - one)[..., :2].mT.flatten(-2)


@value
class Corrective(Value):
    """Offsets of a surface from the rotations of joints, exactly 0 where all are at rest: no layer has a bias.

        h_a = relu(sum over b in near(a) of f_b hidden_ab),    f_b = pose_feature(R_b)
        offset_i = sum over a in near(owner(i)) of output_ia h_a

    A joint's hidden units hear only the joints near it, and a vertex only those near its owner, the joint it hangs on
    most. Weights stand in one block for each owner, so that nothing is computed, or read, that the masks leave out
    (the layers of ATLAS and MHR, which multiply by the zeros too: `dense`).

    Fields: hidden (J, M, 6, H), the row of joint a for near[a]; output, the blocks (vertices of owner a, 3, near(a), H)
        one after the other; place (V,), where among those blocks each vertex stands; near, the joints near each, at
        most M; counts, how many vertices each owns.
    """

    hidden: Float[Tensor, "j m 6 h"]
    output: Float[Tensor, " p"]
    place: Int64[Tensor, " v"]
    near: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]

    def apply(self, rotations: Float[Tensor, "*b j 3 3"]) -> Float[Tensor, "*b v 3"]:
        """Offsets (..., V, 3), in the unit of the surface, from rotations (..., J, 3, 3) relative to the parents.

        Raises: ShapeError for another number of joints.
        """
        joints, most, _, width = self.hidden.shape
        check_shape(rotations, (joints, 3, 3), "rotations")
        device = rotations.device
        # 1. features (..., J, 6), and a row of zeros that stands for no joint
        feature = torch.nn.functional.pad(pose_feature(rotations), (0, 0, 0, 1))
        # 2. hidden units (..., J, H), each from the joints near it
        padded = torch.tensor([[*row, *[joints] * (most - len(row))] for row in self.near], device=device)
        heard = feature[..., padded.reshape(joints, most), :].flatten(-2)
        units = torch.einsum("...jk,jkh->...jh", heard, self.hidden.flatten(1, 2)).relu()
        # 3. one product for each owner: (..., near(a) H) with (3 vertices, near(a) H)
        flat = torch.tensor([b for row in self.near for b in row], dtype=torch.int64, device=device)
        inputs = units[..., flat, :].flatten(-2).split([len(row) * width for row in self.near], -1)
        blocks = self.output.split(self._sizes())
        offsets = [
            torch.nn.functional.linear(x, block.view(3 * count, x.shape[-1]))
            for x, block, count in zip(inputs, blocks, self.counts, strict=True)
            if count
        ]
        # 4. back in the order of the vertices
        return torch.cat(offsets, -1).unflatten(-1, (-1, 3)).index_select(-2, self.place)

    def dense(self) -> tuple[Float[Tensor, "k i"], Float[Tensor, "o k"]]:
        """The two layers as full matrices (J H, 6 J) and (3 V, J H), zeros and all: `apply` to 1e-6 in float32."""
        joints, _, _, width = self.hidden.shape
        first = self.hidden.new_zeros(joints, width, joints, 6)
        second = self.output.new_zeros(len(self.place), 3, joints, width)
        begin = 0
        for a, (row, block) in enumerate(zip(self.near, self.output.split(self._sizes()), strict=True)):
            last = begin + self.counts[a]
            for m, b in enumerate(row):
                first[a, :, b] = self.hidden[a, m].mT
            if row:
                second[begin:last, :, list(row)] = block.view(self.counts[a], 3, len(row), width)
            begin = last
        return first.reshape(joints * width, joints * 6), second[self.place].flatten(2).flatten(0, 1)

    def _sizes(self) -> list[int]:
        width = self.hidden.shape[-1]
        return [3 * count * len(row) * width for count, row in zip(self.counts, self.near, strict=True)]


def make_corrective(
    parent: Int64[Tensor, " j"],
    owner: Int64[Tensor, " v"],
    *,
    hops: int = 1,
    width: int = 24,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Corrective:
    """A corrective that does nothing yet: its last layer is 0, its first uniform within sqrt(6 / fan-in) of 0.

    Args:
        parent: the joint before each, -1 for a root. The rotation of a root turns the whole body, and is not heard.
        owner: the joint that each vertex hangs on most, such as `weights.argmax(-1)`.
        hops: how many bones away a joint is still near. width: hidden units of each joint.
        generator: of the first layer's weights.
    Raises: ShapeError: parents or owners that are no joints, hops or width not positive.

    >>> chain = torch.tensor([-1, 0, 1])
    >>> corrective = make_corrective(chain, torch.tensor([0, 1, 1, 2]))
    >>> corrective.near, corrective.apply(torch.eye(3).expand(3, 3, 3)).shape
    (((1,), (1, 2), (1, 2)), torch.Size([4, 3]))

    Guarantees: not differentiable; deterministic (same generator state); exact f64, exact f32
    """
    for name, x in (("hops", hops), ("width", width)):
        check_positive(x, name)
    joints = len(parent)
    if parent.ndim != 1 or parent.is_floating_point() or bool((parent >= joints).any()):
        raise ShapeError(f"parent: expected the joint before each (J,), -1 for a root, got {describe(parent)}")
    if owner.ndim != 1 or owner.is_floating_point() or bool(((owner < 0) | (owner >= joints)).any()):
        raise ShapeError(f"owner: expected a joint in [0, {joints}) for each vertex (V,), got {describe(owner)}")
    above = parent.cpu()
    child = (above >= 0).nonzero()[:, 0]
    bones = torch.eye(joints, dtype=torch.float64)
    bones[child, above[child]] = 1
    bones[above[child], child] = 1
    reach = torch.linalg.matrix_power(bones, hops) > 0
    reach[:, above < 0] = False
    near = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in reach)
    most = max(1, *map(len, near))
    hidden = torch.rand(joints, most, 6, width, dtype=dtype, generator=generator) * 2 - 1
    fan = 6 * torch.tensor([max(1, len(row)) for row in near], dtype=dtype)
    heard = torch.tensor([[m < len(row) for m in range(most)] for row in near])
    hidden = torch.where(heard[..., None, None], hidden * (6 / fan).sqrt()[:, None, None, None], 0.0)
    counts = torch.bincount(owner, minlength=joints).tolist()
    size = sum(3 * n * len(row) * width for n, row in zip(counts, near, strict=True))
    place = owner.argsort(stable=True).argsort()
    device = parent.device
    return Corrective(hidden.to(device), torch.zeros(size, dtype=dtype, device=device), place, near, tuple(counts))
