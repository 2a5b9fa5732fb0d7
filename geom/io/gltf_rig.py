"""Rigs of glTF 2.0 files (.glb, .gltf): nodes, skins, surfaces with morph targets, and the door to animations."""

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.checks import FLOATS, describe
from geom.errors import FileFormatError, GeomError, ShapeError
from geom.files import write_atomically
from geom.io.bytes import Source, open_source
from geom.io.faces import whole
from geom.io.gltf import triangles
from geom.io.gltf_animation import read_animations
from geom.io.gltf_document import (
    Document,
    Json,
    indices,
    integer,
    node_matrix,
    node_parts,
    numbers,
    objects,
    open_document,
)
from geom.io.gltf_look import read_look
from geom.io.gltf_write_rig import write_rig
from geom.io.rig import Primitive, Rig, Skin, decompose

__all__ = ["load_rig", "save_rig"]

Path = str | os.PathLike[str]
Array = NDArray[Any]

_EXACT = 2.0**-24  # a row of weights this near to 1 is left alone, so that what was normalised once stays as it is


def load_rig(path: Path, *, dtype: torch.dtype = torch.float32) -> Rig:
    """Read the nodes, skins, surfaces, morph targets and animations of a .glb or .gltf file.

    Every node is read, in a scene or not, and every mesh at every node that has it, one primitive after the other.
    What a file may leave open, and what is put right:
    - Weights of a vertex are divided by their sum, in float64; where all are 0 it follows the joint that its first
      slot names. Joints of weight 0 become joint 0, which need not exist in the file's sense.
    - A node with a skin but a primitive without joints, or joints without a skin: carried by the node.
    - A missing inverse bind matrix is the identity. The transform of a node with a skinned mesh changes nothing.
    - A node given as a matrix keeps it to the last bit, as `basis`; one that is animated all the same is taken apart.
    - Rotations of key frames are normalised when they are played; zeros are the identity.
    - Channels without a node, of unknown paths, or of weights where there are no morph targets, are left out; of two
      for one property the last counts. Key frames may repeat a time.
    - Of a mesh whose primitives have different numbers of morph targets, each takes the first weights.
    - Lines and points are surfaces without faces. Strips and fans become triangles.
    Not kept: tangents, texture coordinates from the third set on, cameras, lights, extras. Materials, textures and
    images are kept as they are for `save_rig`; where an image cannot be found, materials without any textures.

    Args: dtype of the surfaces, float32 or float64; nodes are float64, key frames and inverse binds float32.
    Raises: FileFormatError for what is no valid file: cycles, a node with two parents, indices out of range, joints of
        some weight that the skin has not, data beyond the buffer, weights below 0, NaN, times that fall; ShapeError
        for another dtype.

    Guarantees: not differentiable; deterministic; exact f64, exact f32
    """
    if dtype not in FLOATS:
        raise ShapeError(f"dtype: expected torch.float32 or torch.float64, got {describe(dtype)} {dtype}")
    _suffix(path)
    source = open_source(path)
    try:
        return _Reader(open_document(source), dtype).rig()
    except GeomError:
        raise
    except Exception as error:  # the promise is FileFormatError for any bytes; the tests fail where this is needed
        raise source.fail(f"the reader fails on it, please report this: {error!r}") from error


def save_rig(rig: Rig, path: Path) -> None:
    """Write a rig, from any device, as .glb, or as .gltf with its buffer inside; a failed write leaves the old file.

    What `load_rig` read comes back equal: nodes, names, skins, surfaces, morph targets, animations, materials and
    images; node transforms as float64, all else rounded to float32. Joints are written four to a set, so that K comes
    back as a multiple of 4. A node with a `basis` that an animation moves, which glTF has not, becomes two.

    Raises: ShapeError where a number is not finite or beyond float32, or a surface has no vertices; FileFormatError
        for another suffix; OSError where the folder cannot be written to.

    Guarantees: not differentiable; deterministic; exact f32
    """
    suffix = _suffix(path)
    if not isinstance(rig, Rig):
        raise ShapeError(f"rig: expected a geom.skinning.Rig, got a {type(rig).__name__}")
    write_atomically(path, write_rig(rig, binary=suffix == ".glb"))


def _suffix(path: Path) -> str:
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in (".glb", ".gltf"):
        raise FileFormatError(path, f"unknown suffix {suffix!r}: rigs are .glb or .gltf")
    return suffix


class _Reader:
    """One document; what several primitives share is read once."""

    def __init__(self, document: Document, dtype: torch.dtype) -> None:
        self.document, self.source, self.dtype = document, document.source, dtype
        self.known: dict[tuple[Any, ...], Any] = {}
        self.size = 0

    def rig(self) -> Rig:
        parent, _ = self.document.hierarchy()
        nodes = self.document.lists["nodes"]
        skins = tuple(self._skin(item, len(nodes)) for item in self.document.lists["skins"])
        primitives, morph, targets = self._primitives(nodes, skins)
        animations = read_animations(self.document, targets)
        moved = {c.node for a in animations for c in a.channels if c.path != "weights"}
        t, q, s, basis = self._transforms(nodes, moved)
        look, images = read_look(self.document)
        return Rig(
            torch.tensor(parent, dtype=torch.int64),
            t,
            q,
            s,
            torch.tensor(morph, dtype=torch.float64),
            tuple(_name(node) for node in nodes),
            skins,
            tuple(primitives),
            animations,
            basis,
            tuple(self.document.scene_roots(parent)),
            look,
            images,
        )

    def _transforms(self, nodes: list[Json], moved: set[int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        t, q, s = np.zeros((len(nodes), 3)), np.tile([1.0, 0, 0, 0], (len(nodes), 1)), np.ones((len(nodes), 3))
        basis = np.tile(np.eye(3), (len(nodes), 1, 1))
        for i, node in enumerate(nodes):
            matrix = node_matrix(self.source, node)
            if matrix is None:
                t[i], xyzw, s[i] = node_parts(self.source, node, i)
                q[i] = np.roll(xyzw, 1)
                continue
            if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-3:
                raise self.source.fail(f"node {i}: expected a matrix with last row 0 0 0 1")
            if i in moved:
                parts = decompose(torch.from_numpy(matrix[:3].copy()))
                t[i], q[i], s[i] = (x.numpy() for x in parts[:3])
            else:
                t[i], basis[i] = matrix[:3, 3], matrix[:3, :3]
        own = None if (basis == np.eye(3)).all() else torch.from_numpy(basis)
        return torch.from_numpy(t), torch.from_numpy(q), torch.from_numpy(s), own

    def _skin(self, item: Json, count: int) -> Skin:
        joints = indices(self.source, item, "joints", count)
        if not joints:
            raise self.source.fail("skin: expected at least one joint")
        bind = np.tile(np.eye(4, dtype=np.float32), (len(joints), 1, 1))
        if "inverseBindMatrices" in item:
            stored = self.document.accessor(integer(self.source, item, "inverseBindMatrices", 0), ("MAT4",))
            if len(stored) < len(joints):
                raise self.source.fail(f"skin: {len(joints)} joints with {len(stored)} inverse bind matrices")
            bind = _finite(self.source, stored[: len(joints)], "inverse bind matrices").astype(np.float32)
            bind = bind.reshape(-1, 4, 4).transpose(0, 2, 1)  # by columns in the file
            if np.abs(bind[:, 3] - [0, 0, 0, 1]).max() > 1e-3:
                raise self.source.fail("inverse bind matrices: expected a last row 0 0 0 1")
        skeleton = integer(self.source, item, "skeleton", 0) if "skeleton" in item else None
        if skeleton is not None and skeleton >= count:
            raise self.source.fail(f"skeleton: expected a node below {count}, got {skeleton}")
        bind = torch.from_numpy(np.ascontiguousarray(bind[:, :3]))
        return Skin(torch.tensor(joints, dtype=torch.int64), bind, _name(item), skeleton)

    def _primitives(
        self, nodes: list[Json], skins: tuple[Skin, ...]
    ) -> tuple[list[Primitive], list[float], dict[int, int]]:
        """Primitives, morph weights of all nodes, and how many each node has of them."""
        found: list[Primitive] = []
        counts: dict[int, int] = {}
        morph: list[float] = []
        meshes: dict[int, int] = {}
        for node, item in enumerate(nodes):
            if "mesh" not in item:
                continue
            which = integer(self.source, item, "mesh", 0)
            mesh = self.document.item("meshes", which)
            parts = objects(self.source, mesh, "primitives")
            targets = max((len(objects(self.source, part, "targets")) for part in parts), default=0)
            if targets:
                counts[node] = targets
            skin = integer(self.source, item, "skin", 0) if "skin" in item else None
            if skin is not None and skin >= len(skins):
                raise self.source.fail(f"node {node}: expected a skin below {len(skins)}, got {skin}")
            for index, part in enumerate(parts):
                fields = self._primitive(part, None if skin is None else len(skins[skin].joints))
                fields["skin"] = skin if "weights" in fields else None
                fields |= {"mesh": meshes.setdefault(which, len(meshes)), "index": index, "slot": len(morph)}
                names = self._morph_names(mesh)[:targets]
                found.append(Primitive(node=node, name=_name(mesh), morph_names=names, **fields))
            morph += self._weights(item, mesh, targets)
        return found, morph, counts

    def _weights(self, node: Json, mesh: Json, count: int) -> list[float]:
        """Morph weights of one node: its own, else its mesh's, else 0."""
        for item in (node, mesh):
            if count and item.get("weights", []) != []:
                return numbers(self.source, item, "weights", [0.0] * count).tolist()
        return [0.0] * count

    def _morph_names(self, mesh: Json) -> tuple[str, ...]:
        extras = mesh.get("extras")
        names = extras.get("targetNames") if isinstance(extras, dict) else None
        return tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else ()

    def _primitive(self, part: Json, joints: int | None) -> dict[str, Any]:
        """The fields that a primitive has wherever it stands."""
        attributes, extensions = part.get("attributes"), part.get("extensions", {})
        if not isinstance(attributes, dict) or "POSITION" not in attributes:
            raise self.source.fail("a primitive has no attribute POSITION")
        if isinstance(extensions, dict) and "KHR_draco_mesh_compression" in extensions:
            raise self.source.fail("Draco compression is not read")
        vertices = self._floats(attributes, "POSITION", "VEC3")
        assert vertices is not None
        count = len(vertices)
        fields: dict[str, Any] = {
            "vertices": vertices,
            "faces": self._faces(part, count),
            "normals": self._floats(attributes, "NORMAL", "VEC3"),
            "uv": self._floats(attributes, "TEXCOORD_0", "VEC2"),
            "uv_1": self._floats(attributes, "TEXCOORD_1", "VEC2"),
            "colors": self._floats(attributes, "COLOR_0", "VEC3", "VEC4"),
            "material": integer(self.source, part, "material", 0) if "material" in part else None,
        }
        if fields["material"] is not None:
            self.document.item("materials", fields["material"])
        targets = objects(self.source, part, "targets")
        if targets:
            fields["morphs"] = self._targets(targets, "POSITION", vertices)
        if any("NORMAL" in target for target in targets):
            fields["morph_normals"] = self._targets(targets, "NORMAL", vertices)
        for name, x in fields.items():
            if isinstance(x, Tensor) and name != "faces" and x.shape[-2] != count:
                raise self.source.fail(f"{name}: expected {count} elements as in POSITION, got {x.shape[-2]}")
        if joints is not None and "JOINTS_0" in attributes and "WEIGHTS_0" in attributes:
            fields["indices"], fields["weights"] = self._influences(attributes, count, joints)
        return fields

    def _floats(self, attributes: Json, name: str, *widths: str) -> Tensor | None:
        if name not in attributes:
            return None
        key = ("floats", integer(self.source, attributes, name, 0), widths)
        if key not in self.known:
            stored = self._take(self.document.accessor(key[1], widths), self.dtype.itemsize)
            self.known[key] = self._tensor(_finite(self.source, stored, name))
        return self.known[key]

    def _targets(self, targets: list[Json], name: str, vertices: Tensor) -> Tensor:
        found = [self._floats(target, name, "VEC3") for target in targets]
        none = torch.zeros_like(vertices)
        for x in found:
            if x is not None and x.shape != vertices.shape:
                raise self.source.fail(f"morph target: expected {len(vertices)} elements, got {len(x)}")
        key = ("targets", *(id(x) for x in found), len(vertices))
        if key not in self.known:
            self._take(np.empty((len(found) * len(vertices), 0)), 3 * self.dtype.itemsize)
            self.known[key] = torch.stack([none if x is None else x for x in found])
        return self.known[key]

    def _faces(self, part: Json, count: int) -> Tensor:
        mode = integer(self.source, part, "mode", 0, default=4)
        if mode > 6:
            raise self.source.fail(f"mode: expected 0 to 6, got {mode}")
        stored = integer(self.source, part, "indices", 0) if "indices" in part else None
        key = ("faces", stored, mode, count)
        if key not in self.known:
            if stored is None:
                order = np.arange(count)
            else:
                values = self._take(self.document.accessor(stored, ("SCALAR",)), 12)
                order = whole(self.source, values[:, 0], "indices")
                if order.size and not 0 <= order.min() <= order.max() < count:
                    raise self.source.fail(f"indices: expected them below {count}, got {order.min()} to {order.max()}")
            found = triangles(self.source, order, mode) if mode > 3 else np.empty((0, 3), np.int64)
            self.known[key] = torch.from_numpy(np.array(found, np.int64))
        return self.known[key]

    def _influences(self, attributes: Json, count: int, joints: int) -> tuple[Tensor, Tensor]:
        """Joints (V, K) and weights (V, K) of all sets, in one row after the other."""
        sets = 0
        while f"JOINTS_{sets}" in attributes and f"WEIGHTS_{sets}" in attributes:
            sets += 1
        names = [f"{kind}_{n}" for kind in ("JOINTS", "WEIGHTS") for n in range(sets)]
        places = [integer(self.source, attributes, name, 0) for name in names]
        key = ("influences", *places, count, joints)
        if key in self.known:
            return self.known[key]
        tables = [self.document.accessor(place, ("VEC4",)) for place in places]
        for name, table in zip(names, tables, strict=True):
            if len(table) != count:
                raise self.source.fail(f"{name}: expected {count} elements as in POSITION, got {len(table)}")
            self._take(table, 12)
        joint = np.concatenate([whole(self.source, t, "joints") for t in tables[:sets]], 1)
        weight = np.concatenate([_finite(self.source, t, "weights").astype(np.float64) for t in tables[sets:]], 1)
        if (weight < 0).any():
            raise self.source.fail(f"weights: expected none below 0, got {weight.min():g}")
        weight[weight.sum(1) == 0, 0] = 1.0
        joint[weight == 0] = 0
        if joint.size and not 0 <= joint.min() <= joint.max() < joints:
            raise self.source.fail(f"joints: expected them below {joints}, got {joint.min()} to {joint.max()}")
        self.known[key] = torch.from_numpy(joint), self._tensor(_normalised(weight, self.dtype))
        return self.known[key]

    def _take(self, stored: Array, width: int) -> Array:
        """Count the memory that `stored` will take at `width` bytes an element. Raises: FileFormatError."""
        self.size += len(stored) * max(stored.shape[1], 1) * width
        self.source.budget(self.size, "surfaces")
        return stored

    def _tensor(self, x: Array) -> Tensor:
        real = np.float64 if self.dtype == torch.float64 else np.float32
        return torch.from_numpy(np.array(x, real, order="C"))


def _normalised(weight: NDArray[np.float64], dtype: torch.dtype) -> Array:
    """Rows with sum 1; in float32 the largest takes what rounding leaves, so that doing it again changes nothing."""
    total = weight.sum(1, keepdims=True)
    off = np.abs(total[:, 0] - 1) > _EXACT
    weight[off] /= total[off]
    if dtype == torch.float64:
        return weight
    small = weight.astype(np.float32)
    most = weight.argmax(1)[:, None]
    rest = small.astype(np.float64)
    np.put_along_axis(rest, most, 0.0, 1)
    filled = small.copy()
    np.put_along_axis(filled, most, (1 - rest.sum(1, keepdims=True)).astype(np.float32), 1)
    return np.where(off[:, None], filled, small)


def _finite(source: Source, x: Array, what: str) -> Array:
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise source.fail(f"{what}: expected finite numbers, got NaN or inf")
    return x


def _name(item: Json) -> str:
    found = item.get("name", "")
    return found if isinstance(found, str) else ""
