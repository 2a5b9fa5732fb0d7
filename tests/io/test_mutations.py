"""Thousands of broken files: each raises FileFormatError or holds valid geometry, quickly and in little memory."""

import base64
import io
import json
import random
import re
import signal
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geom.errors import FileFormatError
from geom.io import load, save_mesh, save_points
from geom.io.animation import Animation, Channel
from geom.io.gltf_rig import load_rig, save_rig
from geom.io.rig import Rig, make_rig
from geom.meshes import Mesh
from geom.points import Points
from geom.values import replace

SECONDS = 10
NUMBERS = [b"-1", b"0", b"1", b"3", b"255", b"65536", b"2147483647", b"4294967296", b"99999999999999999999"]
NUMBERS += [b"nan", b"inf", b"1e999", b"1e30", b"0x10", b"1_0", b"", b"\0", b"1.5", b"-7", b"true"]


@contextmanager
def deadline(what: str) -> Iterator[None]:
    """Fail where a file takes more than SECONDS."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"{what} takes more than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def check(path: Path) -> bool:
    """Whether the file was refused; raises on everything that is neither an honest refusal nor valid geometry."""
    size = path.stat().st_size
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        with deadline(path.name):
            found = load(path)
    except FileFormatError as error:
        assert "please report" not in error.reason, error
        refused = True
    else:
        refused = False
        x = found.vertices if isinstance(found, Mesh) else found.positions
        for field in (x, found.normals, found.colors, getattr(found, "intensities", None)):
            assert field is None or (len(field) == len(x) and bool(torch.isfinite(field).all()))
        if isinstance(found, Mesh) and found.faces.numel():
            assert int(found.faces.min()) >= 0 and int(found.faces.max()) < len(x)
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak <= 10 * size + 50_000_000, f"{path}: {peak} bytes of memory for a file of {size}"
    return refused


def check_rig(path: Path) -> bool:
    """Whether the file was refused as a rig; raises where one is neither refused nor fit to be posed."""
    size = path.stat().st_size
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        with deadline(path.name):
            rig = load_rig(path)
    except FileFormatError as error:
        assert "please report" not in error.reason, error
        return True
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak <= 10 * size + 50_000_000, f"{path}: {peak} bytes of memory for a file of {size}"
    assert all(bool(torch.isfinite(x).all()) for x in (rig.translation, rig.quat_wxyz, rig.scale, rig.morph))
    for primitive in rig.primitives:
        n = len(primitive.vertices)
        assert bool(torch.isfinite(primitive.vertices).all()) and 0 <= primitive.node < len(rig.names)
        if len(primitive.faces):
            assert int(primitive.faces.min()) >= 0 and int(primitive.faces.max()) < n
        if primitive.indices is not None and primitive.weights is not None and primitive.skin is not None:
            joints = len(rig.skins[primitive.skin].joints)
            assert primitive.indices.shape == primitive.weights.shape == (n, primitive.weights.shape[1])
            assert n == 0 or (int(primitive.indices.min()) >= 0 and int(primitive.indices.max()) < joints)
            assert bool((primitive.weights >= 0).all()) and bool(((primitive.weights.sum(1) - 1).abs() < 1e-6).all())
    for animation in (None, *range(len(rig.animations))):
        pose = rig.pose(animation=animation, time=torch.tensor([0.0, 0.3, 9.0]))
        assert pose.world.shape == (3, len(rig.names), 3, 4) and pose.morph.shape == (3, len(rig.morph))
        sizes = [float(x.abs().max()) for x in (rig.translation, rig.scale, pose.translation, pose.scale) if x.numel()]
        if max(sizes, default=0) < 1e6 and (rig.basis is None or float(rig.basis.abs().max()) < 1e6):
            assert bool(torch.isfinite(pose.world).all())  # larger ones may overflow on their way down a chain
    return False


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or move bytes, or put another number where one stands."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(8)
        if kind <= 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at] = rng.randrange(256)
        elif kind == 3 and rng.random() < 0.5:
            del out[at:]
        elif kind == 4:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 4, 40])))
        elif kind == 5:
            out[at : at + rng.choice([1, 4, 12])] = b""
        else:  # twice as likely: numbers, in the header more often than not
            places = list(re.finditer(rb"-?[0-9]+", bytes(out[: 500 if rng.random() < 0.6 else None])))
            if places:
                number = rng.choice(places)
                out[number.start() : number.end()] = rng.choice(NUMBERS)
    return bytes(out)


def polygons_ply(order: str) -> bytes:
    kind = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    head = (
        f"ply\nformat {kind} 1.0\ncomment x\nelement face 2\nproperty list uchar int vertex_indices\nelement vertex 4\n"
    )
    head += "property float x\nproperty float y\nproperty double z\nproperty uchar red\nproperty uchar green\n"
    head += "property uchar blue\nproperty list uchar short extra\nend_header\n"
    if not order:
        return (
            head
            + "3 0 1 2\n4 0 1 2 3\n"
            + "".join(f"{i} {i}.5 -{i}e-1 9 8 7 {i % 2}{' 5' * (i % 2)}\n" for i in range(4))
        ).encode()
    body = struct.pack(f"{order}B3iB4i", 3, 0, 1, 2, 4, 0, 1, 2, 3)
    for i in range(4):
        body += struct.pack(f"{order}ffd4B{i % 2}h", i, i + 0.5, -i / 10, 9, 8, 7, i % 2, *[5] * (i % 2))
    return head.encode() + body


def pcd(kind: str) -> bytes:
    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    head = "# .PCD\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\n"
    head += f"WIDTH 2\nHEIGHT 2\nPOINTS 4\nDATA {kind}\n"
    if kind == "ascii":
        return head.encode() + b"".join(b"%g %g %g 16711680\n" % tuple(r) for r in xyz.tolist())
    plain = xyz.T.tobytes() + b"\0\0\xff\0" * 4
    # a reference instead of the colours: 12 bytes from 4 back
    packed = bytes([31]) + plain[:32] + bytes([15]) + plain[32:48] + bytes([3]) + plain[48:52] + bytes([7 << 5, 3, 3])
    return head.encode() + struct.pack("<II", len(packed), len(plain)) + packed


def gltf(folder: Path) -> bytes:
    data = (folder / "seed.glb").read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    found, body = json.loads(data[20 : 20 + size]), data[28 + size :]
    found["buffers"][0]["uri"] = "data:;base64," + base64.b64encode(body).decode()
    found["nodes"] = [
        {"children": [1], "rotation": [0, 0, 1, 0], "scale": [1, 2, 3]},
        {"mesh": 0, "translation": [1, 2, 3]},
    ]
    return json.dumps(found).encode()


def plain(data: bytes) -> bytes:
    return data


def in_glb(text: bytes) -> bytes:
    """Mutated JSON in a container that is right, so that the mutation gets past it."""
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON") + text


def in_npz(member: bytes) -> bytes:
    """A mutated array in an archive whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xyz.npy", member)
    return file.getvalue()


def seeds(folder: Path) -> list[tuple[str, bytes, Callable[[bytes], bytes]]]:
    """A name, a valid file and what to wrap the mutated bytes in."""
    x = torch.arange(18, dtype=torch.float32).reshape(6, 3) / 8
    normals, colors = torch.eye(3).repeat(2, 1), x / 4
    faces = torch.tensor([[0, 1, 2], [2, 3, 4], [5, 4, 3]])
    points = Points(x, normals=normals, colors=colors, intensities=x[:, 0])
    mesh = Mesh(x, faces, normals=normals, colors=colors)
    found: list[tuple[str, bytes, Callable[[bytes], bytes]]] = []
    for suffix in ("ply", "pcd", "xyz", "npz"):
        save_points(points, folder / f"seed.{suffix}")
        found.append((f"points.{suffix}", (folder / f"seed.{suffix}").read_bytes(), plain))
    for suffix in ("npy", "bin"):
        save_points(Points(x, intensities=x[:, 0]), folder / f"seed.{suffix}")
        found.append((f"points.{suffix}", (folder / f"seed.{suffix}").read_bytes(), plain))
    for suffix in ("ply", "obj", "off", "npz", "glb"):
        save_mesh(mesh, folder / f"seed.{suffix}")
        found.append((f"mesh.{suffix}", (folder / f"seed.{suffix}").read_bytes(), plain))
    save_mesh(Mesh(x, faces), folder / "seed.stl")
    found.append(("mesh.stl", (folder / "seed.stl").read_bytes(), plain))
    facet = "facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 .5\nendloop\nendfacet\n"
    found.append(("ascii.stl", f"solid a\n{facet * 3}endsolid a\n".encode(), plain))
    found += [(f"polygons{i}.ply", polygons_ply(order), plain) for i, order in enumerate("<>")]
    found.append(("ascii.ply", polygons_ply(""), plain))
    found += [("ascii.pcd", pcd("ascii"), plain), ("compressed.pcd", pcd("binary_compressed"), plain)]
    corners = "v 0 0 0 # c\nv 1 0 0\nv 1 1 0 \\\n\nv 0 1 0\nvt 0 0\nvn 0 0 1\n"
    corners += "f 1/1/1 2/1/1 3/1/1 4//1\nf -1 -2 -3\nf 1/1 2 3\n"
    found.append(("corners.obj", f"mtllib a.mtl\no x\n{corners}".encode(), plain))
    found.append(("names.csv", b"x,y,z,intensity\n1,2,3,4\n-1,2.5,3e0,4\n# end\n", plain))
    document = gltf(folder)
    found += [("text.gltf", document, plain), ("wrapped.glb", document, in_glb)]
    member = zipfile.ZipFile(io.BytesIO(found[3][1])).read("positions.npy")
    found += [("member.npz", member, in_npz), ("array.npy", member, plain)]
    return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes, Callable[[bytes], bytes]]]:
    """A path, a valid file and its wrapping; each has loaded."""
    folder = tmp_path_factory.mktemp("seeds")
    found = []
    for name, data, wrap in seeds(folder):
        path = folder / name
        path.write_bytes(wrap(data))
        assert not check(path), f"the seed {name} itself is refused"
        found.append((path, data, wrap))
    return found


@pytest.fixture(scope="module")
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@settings(max_examples=3000, deadline=None, derandomize=True, database=None)
@given(case=st.integers(0, 23), rng=st.randoms(use_true_random=False))
def test_mutated_files(cases, traced, case: int, rng: random.Random) -> None:
    """Three thousand mutations, shrunk by hypothesis where one is not handled."""
    path, data, wrap = cases[case]
    path.write_bytes(wrap(mutate(data, rng)))
    check(path)


def test_mutations_are_noticed(cases, traced) -> None:
    """The test above can fail: a good part of the mutations reaches the checks."""
    rng = random.Random(0)
    for path, data, wrap in cases:
        refused = 0
        for _ in range(100):
            path.write_bytes(wrap(mutate(data, rng)))
            refused += check(path)
        assert refused > 5, f"{path.name}: hardly a mutation is noticed"


def bending() -> Rig:
    """A small rig with every part that a file of one can have."""
    x = torch.arange(18, dtype=torch.float32).reshape(6, 3) / 8
    rig = make_rig(x, torch.tensor([[0, 1, 2], [2, 3, 4], [5, 4, 3]]), parent=torch.tensor([-1, 0, 1]), joints=x[:3],
                   weights=x[:, :1].add(1).repeat(1, 3), motion=torch.eye(3, 4).repeat(2, 3, 1, 1))  # fmt: skip
    body = replace(rig.primitives[0], normals=x, uv=x[:, :2], colors=x / 4, morphs=torch.stack([x, -x]))
    still = replace(body, node=1, weights=None, indices=None, skin=None, morphs=None, mesh=1)
    times = torch.tensor([0.0, 0.5])
    spline = Channel(times, torch.rand(2, 3, 4) + 0.1, 1, "rotation", "CUBICSPLINE")
    weights = Channel(times, torch.rand(2, 2), 3, "weights", "STEP")
    basis = torch.eye(3).repeat(4, 1, 1)
    basis[2, 0, 1] = 0.5
    return replace(
        rig,
        primitives=(still, body),
        morph=torch.tensor([0.5, 0.25]),
        animations=(*rig.animations, Animation((spline, weights), "b")),
        basis=basis,
        look='{"materials":[{}],"textures":[{"source":0}],"images":[[0,3,"image/png",""]]}',
        images=torch.arange(3, dtype=torch.uint8),
    )


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, bytes, Callable[[bytes], bytes]]]:
    """As `cases`: bytes of a GLB, text of a glTF, and the same text in a container that is right."""
    folder = tmp_path_factory.mktemp("rigs")
    found = []
    for name, suffix, wrap in (("a.glb", "glb", plain), ("b.gltf", "gltf", plain), ("c.glb", "gltf", in_glb)):
        save_rig(bending(), folder / f"seed.{suffix}")
        data = (folder / f"seed.{suffix}").read_bytes()
        (folder / name).write_bytes(wrap(data))
        assert not check_rig(folder / name)
        found.append((folder / name, data, wrap))
    return found


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(case=st.integers(0, 2), rng=st.randoms(use_true_random=False))
def test_mutated_rigs(rigs, traced, case: int, rng: random.Random) -> None:
    """Six hundred mutations of bytes and of numbers in the JSON."""
    path, data, wrap = rigs[case]
    path.write_bytes(wrap(mutate(data, rng)))
    check_rig(path)


WRONG_JSON = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2.5,
    1e300,
    10**400,
    "",
    "x",
    [],
    [0],
    [0, 0],
    [1e30] * 3,
    {},
    {"a": 1},
    [[]],
    [{}],
]


def test_rigs_with_one_entry_of_the_json_replaced(rigs, traced) -> None:
    """Every place in the JSON gets three values of other kinds."""
    path, data, _ = rigs[1]
    found = json.loads(data)
    places: list[tuple[object, object]] = []

    def walk(item: object) -> None:
        for key in list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ():
            places.append((item, key))
            walk(item[key])  # type: ignore[index]

    walk(found)
    rng, refused, tried = random.Random(0), 0, 0
    for item, key in places:
        old = item[key]  # type: ignore[index]
        for new in rng.sample(WRONG_JSON, 3):
            item[key] = new  # type: ignore[index]
            path.write_text(json.dumps(found))
            refused += check_rig(path)
            tried += 1
        item[key] = old  # type: ignore[index]
    assert tried > 800 and refused > tried / 4


@pytest.mark.parametrize("seed", range(3))
def test_noise(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    tracemalloc.start()
    try:
        for suffix in ("ply", "obj", "stl", "off", "pcd", "xyz", "npz", "npy", "glb", "gltf"):
            for size in (1, 5, 100, 3000):
                path = tmp_path / f"a.{suffix}"
                path.write_bytes(rng.randbytes(size))
                check(path)
    finally:
        tracemalloc.stop()


HUGE = {
    "ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nproperty float y\n"
    b"property float z\nelement empty 999999999999999999\nend_header\n" + b"\0" * 3000,
    "PLY": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
    b"element face 1\nproperty list uint uint vertex_indices\nend_header\n0 0 0\n4294967295 0 0 0\n",
    "pcd": b"FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 89478485\nHEIGHT 1\nPOINTS 89478485\nDATA binary_compressed\n"
    + struct.pack("<II", 3000, 89478485 * 12)
    + b"\0\0" * 2
    + b"\xe0\xff\0" * 998,
    "obj": b"v 0 0 0\n" * 3 + b"f 1 2 2147483647\nf 1 2 -2147483647\n",
    "off": b"OFF\n999999999 999999999 0\n" + b"0 0 0\n" * 99,
    "npy": b"\x93NUMPY\1\0\x76\0{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 3), }".ljust(128),
    "gltf": json.dumps(
        {
            "asset": {"version": "2.0"},
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
            "accessors": [{"componentType": 5126, "type": "VEC3", "count": 10**9}],
        }
    ).encode(),
}


@pytest.mark.parametrize("suffix", HUGE)
def test_counts_are_checked_before_memory_is_taken(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(HUGE[suffix])
    tracemalloc.start()
    try:
        assert check(tmp_path / f"a.{suffix}")
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", ["xyz", "off", "obj"])
def test_millions_of_comments_take_little_memory(tmp_path: Path, suffix: str) -> None:
    head = {"xyz": b"1 2 3\n", "off": b"OFF 0 0 0\n", "obj": b"v 1 2 3\n"}[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(head + b"#\n" * 3_000_000)
    tracemalloc.start()
    try:
        assert not check(tmp_path / f"a.{suffix}")
    finally:
        tracemalloc.stop()


def test_mutated_usd(tmp_path: Path) -> None:
    pxr = pytest.importorskip("pxr.Usd", reason="usd-core is not installed")
    from pxr import UsdGeom

    stage = pxr.Stage.CreateNew(str(tmp_path / "seed.usdc"))
    mesh = UsdGeom.Mesh.Define(stage, "/mesh")
    mesh.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    mesh.CreateFaceVertexCountsAttr([4])
    mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    stage.Save()
    rng = random.Random(0)
    data = (tmp_path / "seed.usdc").read_bytes()
    for _ in range(12):  # each in a process of its own
        (tmp_path / "a.usdc").write_bytes(data[:8] + mutate(data[8:], rng))
        try:
            load(tmp_path / "a.usdc")
        except FileFormatError as error:
            assert "please report" not in error.reason
