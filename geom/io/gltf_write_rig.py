"""Rigs written as glTF 2.0."""

import base64
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geom.errors import ShapeError
from geom.io.animation import Animation
from geom.io.gltf import pack_glb
from geom.io.gltf_document import Json
from geom.io.gltf_look import write_look
from geom.io.rig import Primitive, Rig
from geom.lie import quaternion
from geom.values import replace

__all__ = ["write_rig"]

_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_COMPONENTS = {"uint8": 5121, "uint16": 5123, "uint32": 5125, "float32": 5126}
_ATTRIBUTES = {
    "POSITION": "vertices",
    "NORMAL": "normals",
    "TEXCOORD_0": "uv",
    "TEXCOORD_1": "uv_1",
    "COLOR_0": "colors",
}
_VERTICES, _FACES = 34962, 34963  # what a buffer view is for


def write_rig(rig: Rig, *, binary: bool) -> bytes:
    """The file: .glb where `binary`, else .gltf with its buffer as a data URI.

    Raises: ShapeError where a number is not finite in float32, or a surface has no vertices.
    """
    rig, body = _apart(rig), _Body()
    nodes = _nodes(rig)
    meshes = _meshes(rig, nodes, body)
    skins = [
        {
            "joints": skin.joints.tolist(),
            "inverseBindMatrices": body.add(_columns(skin.inverse_bind), f"skin {i}"),
            **_named(skin.name),
            **({} if skin.skeleton is None else {"skeleton": skin.skeleton}),
        }
        for i, skin in enumerate(rig.skins)
    ]
    animations = [_animation(animation, body) for animation in rig.animations]
    look, images = write_look(rig.look, rig.images)
    for item, data in zip(look.get("images", []), images, strict=True):
        item["bufferView"] = body.view(data)
    lists = {
        "nodes": nodes,
        "meshes": meshes,
        "skins": skins,
        "animations": animations,
        **look,
        "accessors": body.accessors,
        "bufferViews": body.views,
    }
    document: Json = {
        "asset": {"version": "2.0", "generator": "geom"},
        "scene": 0,
        "scenes": [{"nodes": list(rig.scene)} if rig.scene else {}],
        **{name: items for name, items in lists.items() if items},
    }
    data = b"".join(body.parts)
    buffer: Json = {"byteLength": len(data)}
    if data:
        document["buffers"] = [buffer]
    if binary:
        return pack_glb(document, data)
    buffer["uri"] = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    return json.dumps(document, separators=(",", ":")).encode()


class _Body:
    """The buffer and what it holds; equal arrays of one purpose are held once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.views: list[Json] = []
        self.accessors: list[Json] = []
        self.known: dict[tuple[Any, ...], int] = {}

    def view(self, data: bytes, target: int | None = None) -> int:
        """A buffer view of these bytes."""
        purpose: Json = {} if target is None else {"target": target}
        self.views.append({"buffer": 0, "byteOffset": self.length, "byteLength": len(data), **purpose})
        padded = data + b"\0" * (-len(data) % 4)
        self.parts.append(padded)
        self.length += len(padded)
        return len(self.views) - 1

    def add(
        self, x: Tensor | NDArray[Any], what: str, *, target: int | None = None, bounds: bool = False, width: int = 0
    ) -> int:
        """An accessor of rows (n, width), or (n,) numbers; floats as float32."""
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise ShapeError(f"{what}: glTF stores float32, expected finite numbers below 3.4e38")
        array = np.ascontiguousarray(array.reshape(len(array), -1) if width == 0 else array.reshape(-1, width))
        if not array.size:
            raise ShapeError(f"{what}: glTF holds no empty arrays, got one of shape {array.shape}")
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        key = (data, str(array.dtype), array.shape, target, bounds)
        if key not in self.known:
            item: Json = {
                "bufferView": self.view(data, target),
                "componentType": _COMPONENTS[str(array.dtype)],
                "count": len(array),
                "type": _TYPES[array.shape[1]],
            }
            if bounds:
                item |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
            self.accessors.append(item)
            self.known[key] = len(self.accessors) - 1
        return self.known[key]


def _apart(rig: Rig) -> Rig:
    """What moves before a basis gets a node of its own above, at the end of the list: a matrix is never animated."""
    if rig.basis is None:
        return rig
    one = torch.eye(3).to(rig.basis)
    moved = {c.node for a in rig.animations for c in a.channels if c.path != "weights"}
    split = sorted(node for node in moved if not torch.equal(rig.basis[node], one))
    if not split:
        return rig
    new = {node: len(rig.names) + k for k, node in enumerate(split)}
    parent, t, q, s = (torch.cat([x, x[split]]) for x in (rig.parent, rig.translation, rig.quat_wxyz, rig.scale))
    parent[split] = torch.tensor(list(new.values()), device=parent.device)
    t[split], q[split], s[split] = 0, torch.eye(1, 4).to(q), 1
    channels = (
        [replace(c, node=new.get(c.node, c.node)) if c.path != "weights" else c for c in a.channels]
        for a in rig.animations
    )
    return replace(
        rig,
        parent=parent,
        translation=t,
        quat_wxyz=q,
        scale=s,
        names=(*rig.names, *(rig.names[node] and f"{rig.names[node]} moved" for node in split)),
        animations=tuple(replace(a, channels=tuple(c)) for a, c in zip(rig.animations, channels, strict=True)),
        basis=torch.cat([rig.basis, one.expand(len(split), 3, 3)]),
        scene=tuple(new.get(node, node) for node in rig.scene),
    )


def _nodes(rig: Rig) -> list[Json]:
    """Hierarchy, names and transforms; a node with a basis is written as its matrix, others by their parts."""
    nodes: list[Json] = [_named(name) for name in rig.names]
    for child, above in enumerate(rig.parent.tolist()):
        if above >= 0:
            nodes[above].setdefault("children", []).append(child)
    t, q, s = (x.detach().double().cpu() for x in (rig.translation, rig.quat_wxyz, rig.scale))
    basis = None if rig.basis is None else rig.basis.detach().double().cpu()
    parts = (t, q, s) if basis is None else (t, q, s, basis)
    if not all(bool(torch.isfinite(x).all()) for x in parts):
        raise ShapeError("nodes: expected finite transforms to write, got NaN or inf")
    linear = quaternion.to_matrix(q) * s[:, None] @ (torch.eye(3, dtype=torch.float64) if basis is None else basis)
    matrix = torch.zeros(len(nodes), 4, 4, dtype=torch.float64)
    matrix[:, :3, :3], matrix[:, :3, 3], matrix[:, 3, 3] = linear, t, 1
    for i, node in enumerate(nodes):
        if basis is not None and not torch.equal(basis[i], torch.eye(3, dtype=torch.float64)):
            node["matrix"] = matrix[i].T.flatten().tolist()
            continue
        rows = (("translation", t[i], [0, 0, 0]), ("rotation", q[i].roll(-1), [0, 0, 0, 1]), ("scale", s[i], [1, 1, 1]))
        node |= {name: x.tolist() for name, x, plain in rows if x.tolist() != plain}
    return nodes


def _meshes(rig: Rig, nodes: list[Json], body: _Body) -> list[Json]:
    """Meshes, which are set at their nodes; what stands at several nodes is written once."""
    slots = rig.morph_slots()
    carried: dict[int, list[Primitive]] = {}
    for primitive in rig.primitives:
        carried.setdefault(primitive.node, []).append(primitive)
    meshes: list[Json] = []
    known: dict[str, int] = {}
    for node, primitives in sorted(carried.items()):
        first = primitives[0]
        mesh: Json = {"primitives": [_primitive(p, body) for p in primitives], **_named(first.name)}
        if first.morph_names:
            mesh["extras"] = {"targetNames": list(first.morph_names)}
        key = json.dumps([first.mesh, mesh])
        if key not in known:
            known[key] = len(meshes)
            meshes.append(mesh)
        nodes[node]["mesh"] = known[key]
        skin = next((p.skin for p in primitives if p.skin is not None), None)
        if skin is not None:
            nodes[node]["skin"] = skin
        if node in slots:
            start, end = slots[node]
            nodes[node]["weights"] = rig.morph[start:end].tolist()
    return meshes


def _primitive(p: Primitive, body: _Body) -> Json:
    attributes: Json = {}
    for name, field in _ATTRIBUTES.items():
        x = getattr(p, field)
        if x is not None:
            attributes[name] = body.add(x, field, target=_VERTICES, bounds=name == "POSITION")
    if p.weights is not None and p.indices is not None:
        more = -p.weights.shape[1] % 4
        joint, weight = (torch.nn.functional.pad(x.detach().cpu(), (0, more)) for x in (p.indices, p.weights))
        most = int(joint.max()) if joint.numel() else 0
        if most > 65535:
            raise ShapeError(f"indices: glTF counts joints in 16 bits, got {most}")
        stored = joint.numpy().astype(np.uint8 if most < 256 else np.uint16)
        for n in range(joint.shape[1] // 4):
            part = slice(4 * n, 4 * n + 4)
            attributes[f"JOINTS_{n}"] = body.add(stored[:, part], "indices", target=_VERTICES)
            attributes[f"WEIGHTS_{n}"] = body.add(weight[:, part], "weights", target=_VERTICES)
    found: Json = {"attributes": attributes, "mode": 4 if len(p.faces) else 0}
    if len(p.faces):
        order = p.faces.detach().cpu().numpy().astype(np.uint32)
        found["indices"] = body.add(order, "faces", target=_FACES, width=1)
    if p.material is not None:
        found["material"] = p.material
    if p.morphs is not None:
        found["targets"] = [{"POSITION": body.add(x, "morphs", target=_VERTICES, bounds=True)} for x in p.morphs]
        for target, x in zip(found["targets"], () if p.morph_normals is None else p.morph_normals, strict=False):
            target["NORMAL"] = body.add(x, "morph_normals", target=_VERTICES)
    return found


def _animation(animation: Animation, body: _Body) -> Json:
    samplers, channels = [], []
    for channel in animation.channels:
        values = channel.values.roll(-1, -1) if channel.path == "rotation" else channel.values
        width = {"rotation": 4, "weights": 1}.get(channel.path, 3)
        samplers.append(
            {
                "input": body.add(channel.times, "times", bounds=True),
                "output": body.add(values, channel.path, width=width),
                "interpolation": channel.interpolation,
            }
        )
        channels.append({"sampler": len(samplers) - 1, "target": {"node": channel.node, "path": channel.path}})
    return {"samplers": samplers, "channels": channels, **_named(animation.name)}


def _columns(affine: Tensor) -> Tensor:
    """(j, 3, 4) as rows of 16 numbers, column after column."""
    full = torch.zeros(len(affine), 4, 4, dtype=affine.dtype)
    full[:, :3], full[:, 3, 3] = affine.detach().cpu(), 1
    return full.mT.flatten(1)


def _named(name: str) -> Json:
    return {"name": name} if name else {}
