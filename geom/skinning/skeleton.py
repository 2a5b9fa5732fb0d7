"""`Skeleton`: joints, which hangs on which, and their names; of a file or a rig."""

import json
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from geom.checks import check_points, describe
from geom.errors import FileFormatError, ShapeError
from geom.io.gltf_rig import load_rig
from geom.io.rig import Rig
from geom.lie.kinematics import invert_affine
from geom.values import Value, value

__all__ = ["Skeleton", "load_skeleton", "rig_skeleton"]


@value
class Skeleton(Value):
    """A tree of joints, or several.

    Fields: parent, the joint above each, -1 at a root, any order; joints, where they are at rest, metres; names.

    Raises: ShapeError for no joint, other shapes, positions that are not finite, parents out of range or in a cycle.

    >>> arm = Skeleton(torch.tensor([-1, 0, 1]), torch.tensor([[0., 0, 0], [1, 0, 0], [2, 0, 0]]), ("a", "b", "c"))
    >>> arm.bones()[0][:, 1, 0].tolist(), arm.bones()[1].tolist()
    ([1.0, 2.0, 2.5], [0, 1, 2])
    """

    parent: Int64[Tensor, " j"]
    joints: Float[Tensor, "j 3"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(check_points(self.joints, "joints", minimum=1))
        if not isinstance(self.parent, Tensor) or self.parent.dtype != torch.int64 or self.parent.shape != (count,):
            raise ShapeError(f"parent: expected an int64 tensor ({count},), got {describe(self.parent)}")
        if len(self.names) != count:
            raise ShapeError(f"names: expected {count}, got {len(self.names)}")
        parent = self.parent.tolist()
        if not all(-1 <= p < count for p in parent):
            raise ShapeError(f"parent: expected joints in [-1, {count}), got {min(parent)} to {max(parent)}")
        rooted = {-1}
        for joint in range(count):
            path = []
            while joint not in rooted and joint not in path:
                path.append(joint)
                joint = parent[joint]
            if joint in path:
                raise ShapeError(f"parent: expected a forest, got a cycle through joint {joint}")
            rooted.update(path)

    def bones(self) -> tuple[Float[Tensor, "b 2 3"], Int64[Tensor, " b"]]:
        """The segments (B, 2, 3) that joints move, and which joint moves each (B,).

        One from each joint to each that hangs on it; one on which none hangs goes on for half the way from its parent,
        and a lone root has length 0.

        Guarantees: differentiable; deterministic; 1e-16 f64, 1e-7 f32
        """
        x, child = self.joints, (self.parent >= 0).nonzero()[:, 0]
        above = self.parent[child]
        last = torch.ones_like(self.parent, dtype=torch.bool).index_fill(0, above, False).nonzero()[:, 0]
        before = torch.where(self.parent >= 0, self.parent, torch.arange(len(x), device=x.device))[last]
        start, stop = torch.cat([x[above], x[last]]), torch.cat([x[child], x[last] + (x[last] - x[before]) / 2])
        owner = torch.cat([above, last])
        order = owner.argsort(dim=0, stable=True)
        return torch.stack([start, stop], 1)[order], owner[order]


def rig_skeleton(rig: Rig) -> Skeleton:
    """The joints of a rig's first skin where they were bound; of a rig without skins all nodes, where they are at rest.

    A joint hangs on the nearest node above it that is a joint too.

    Raises: ShapeError for a rig without nodes, or inverse bind matrices that cannot be inverted.

    Guarantees: not differentiable; deterministic; 1e-15 f64, 1e-7 f32
    """
    if rig.skins:
        nodes, places = rig.skins[0].joints.tolist(), invert_affine(rig.skins[0].inverse_bind.double())[..., 3]
    else:
        nodes, places = list(range(len(rig.names))), rig.pose().world[..., 3]
    above, place = rig.parent.tolist(), {node: k for k, node in enumerate(nodes)}
    parent = []
    for node in nodes:
        up = above[node]
        while up >= 0 and up not in place:
            up = above[up]
        parent.append(place.get(up, -1))
    names = tuple(rig.names[node] for node in nodes)
    return Skeleton(torch.tensor(parent), places.detach().to(rig.translation.dtype).cpu(), names)


def load_skeleton(path: str | Path) -> Skeleton:
    """A skeleton from a file: JSON, or the first skin of a glTF or GLB rig, or its nodes where it has none.

    JSON: {"names": ["hip", "knee", ...], "parents": [-1, 0, ...], "joints": [[x, y, z], ...]}, metres; float64.

    Raises: FileFormatError; OSError as `open` would.

    Guarantees: not differentiable; deterministic; exact
    """
    path = Path(path)
    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            return rig_skeleton(load_rig(path))
        found = json.loads(path.read_bytes().decode())
        names, parents, joints = (found[key] for key in ("names", "parents", "joints"))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("names that are no strings")
        if not all(isinstance(p, int) and not isinstance(p, bool) for p in parents):
            raise TypeError("parents that are no integers")
        table = torch.tensor(joints, dtype=torch.float64)
        return Skeleton(torch.tensor(parents, dtype=torch.int64), table, tuple(names))
    except FileFormatError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = error if isinstance(error, ShapeError) else repr(error)
        expected = 'expected a skeleton, {"names": [...], "parents": [...], "joints": [[x, y, z], ...]}'
        raise FileFormatError(path, f"{expected}, got {reason}") from error
