"""Make the synthetic human, human.safetensors beside this script: `python assets/bodies/make_body.py`.

Nobody was measured for it: rounded cones about 22 joints, blended to one closed surface, T-pose, y up, z ahead, feet on
y = 0, metres. Joints have SMPL's names and order, without hands. Weights spread along the surface by heat; shapes are
smooth fields along the normals, bone coefficients lengthen and widen groups of bones, one unit a plausible standard
deviation. The corrective is learned: it makes linear skinning do as dual quaternions do, which keep the volume of bent
elbows and knees and of twisted forearms. The seed is 0; some two minutes of one core.
"""

import sys
from pathlib import Path

import torch
from scipy.sparse import coo_array, eye_array
from scipy.sparse.linalg import splu
from torch import Tensor

from geom.lie import quaternion
from geom.meshes import Mesh, decimate, marching_cubes, uniform_laplacian, vertex_normals
from geom.skinning import BodyModel, dqs, fit_corrective, make_body, make_corrective, unpose
from geom.train import Cosine, TrainConfig
from geom.values import replace

HERE = Path(__file__).resolve().parent
FACES = 4800
SHORT = ("neck", "collar", "foot")  # bones that would lose their flesh to longer neighbours
BLEND = 0.018  # metres over which cones melt into one another
# name: parent, x, y, z; left is +x
JOINTS = {
    "pelvis": (-1, 0.0, 0.95, 0.0),
    "left_hip": (0, 0.09, 0.89, 0.0),
    "right_hip": (0, -0.09, 0.89, 0.0),
    "spine1": (0, 0.0, 1.06, 0.0),
    "left_knee": (1, 0.1, 0.49, 0.01),
    "right_knee": (2, -0.1, 0.49, 0.01),
    "spine2": (3, 0.0, 1.19, -0.01),
    "left_ankle": (4, 0.105, 0.08, -0.02),
    "right_ankle": (5, -0.105, 0.08, -0.02),
    "spine3": (6, 0.0, 1.3, -0.01),
    "left_foot": (7, 0.115, 0.03, 0.1),
    "right_foot": (8, -0.115, 0.03, 0.1),
    "neck": (9, 0.0, 1.47, -0.01),
    "left_collar": (9, 0.06, 1.41, -0.01),
    "right_collar": (9, -0.06, 1.41, -0.01),
    "head": (12, 0.0, 1.57, 0.015),
    "left_shoulder": (13, 0.18, 1.42, -0.01),
    "right_shoulder": (14, -0.18, 1.42, -0.01),
    "left_elbow": (16, 0.45, 1.42, -0.015),
    "right_elbow": (17, -0.45, 1.42, -0.015),
    "left_wrist": (18, 0.7, 1.42, 0.0),
    "right_wrist": (19, -0.7, 1.42, 0.0),
}
# joint, start, its radius, end, its radius; those of the left have a mirror image on the right
CONES = [
    ("pelvis", (-0.07, 0.92, -0.01), 0.105, (0.07, 0.92, -0.01), 0.105),
    ("spine1", (-0.055, 1.05, 0.0), 0.1, (0.055, 1.05, 0.0), 0.1),
    ("spine2", (-0.06, 1.17, 0.0), 0.105, (0.06, 1.17, 0.0), 0.105),
    ("spine3", (-0.09, 1.31, 0.0), 0.105, (0.09, 1.31, 0.0), 0.105),
    ("neck", (0.0, 1.43, -0.015), 0.062, (0.0, 1.55, 0.0), 0.055),
    ("head", (0.0, 1.6, 0.015), 0.078, (0.0, 1.67, 0.005), 0.088),
    ("left_hip", (0.095, 0.87, 0.0), 0.095, (0.1, 0.51, 0.005), 0.06),
    ("left_knee", (0.1, 0.49, 0.0), 0.057, (0.103, 0.35, -0.015), 0.055),
    ("left_knee", (0.103, 0.35, -0.015), 0.055, (0.105, 0.1, -0.02), 0.038),
    ("left_ankle", (0.105, 0.05, -0.035), 0.042, (0.112, 0.045, 0.06), 0.038),
    ("left_foot", (0.114, 0.035, 0.09), 0.034, (0.117, 0.03, 0.14), 0.028),
    ("left_collar", (0.06, 1.4, -0.01), 0.075, (0.15, 1.405, -0.01), 0.07),
    ("left_shoulder", (0.18, 1.42, -0.01), 0.066, (0.44, 1.42, -0.015), 0.043),
    ("left_elbow", (0.45, 1.42, -0.015), 0.042, (0.53, 1.42, -0.01), 0.044),
    ("left_elbow", (0.53, 1.42, -0.01), 0.044, (0.69, 1.42, 0.0), 0.028),
    ("left_wrist", (0.71, 1.42, 0.0), 0.028, (0.8, 1.42, 0.005), 0.034),
    ("left_wrist", (0.8, 1.42, 0.005), 0.034, (0.86, 1.415, 0.01), 0.02),
]


def cones() -> list[tuple[int, Tensor, float, Tensor, float]]:
    names = list(JOINTS)
    found = []
    for name, a, ra, b, rb in CONES:
        sides = [(name, 1.0)] if not name.startswith("left") else [(name, 1.0), (name.replace("left", "right"), -1.0)]
        for own, side in sides:
            mirror = torch.tensor([side, 1.0, 1.0], dtype=torch.float64)
            found.append(
                (names.index(own), torch.tensor(a).double() * mirror, ra, torch.tensor(b).double() * mirror, rb)
            )
    return found


def distances(points: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distance (N,) to the whole, and (N, J) to what belongs to each joint."""
    each = torch.full((*points.shape[:-1], len(JOINTS)), 9.0, dtype=points.dtype)
    total = torch.zeros(points.shape[:-1], dtype=points.dtype)
    for joint, a, ra, b, rb in cones():
        along = b - a
        t = ((points - a) @ along / (along @ along)).clamp(0, 1)
        d = (points - a - t[..., None] * along).norm(dim=-1) - (ra + t * (rb - ra))
        each[..., joint] = torch.minimum(each[..., joint], d)
        total = total + (-d / BLEND).exp()
    return -BLEND * total.log(), each


def surface() -> Mesh:
    step = 0.012
    low, high = torch.tensor([-0.93, -0.05, -0.22]).double(), torch.tensor([0.93, 1.83, 0.26]).double()
    axes = [low[d] + step * torch.arange(int((high[d] - low[d]) / step) + 1) for d in range(3)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    mesh = marching_cubes(distances(grid)[0], spacing=step, origin=low)
    mesh = decimate(mesh, FACES)
    x = mesh.vertices.double()
    for _ in range(3):  # back onto the surface that was sampled
        x = x.detach().requires_grad_()
        d = distances(x)[0]
        (slope,) = torch.autograd.grad(d.sum(), x)
        x = x - (d / slope.square().sum(-1).clamp(min=0.1))[:, None] * slope
    return Mesh(x.detach(), mesh.faces)


def skin(mesh: Mesh, keep: int = 4, spread: float = 6.0) -> tuple[Tensor, Tensor]:
    """Weights and joints (V, 4): each vertex its nearest joint's, spread by heat along edges and so not across gaps."""
    apart = distances(mesh.vertices)[1]
    apart[:, [k for k, name in enumerate(JOINTS) if any(part in name for part in SHORT)]] -= 0.012
    own = torch.nn.functional.one_hot(apart.argmin(-1), len(JOINTS)).double()
    laplacian = uniform_laplacian(mesh.faces, len(own), dtype=torch.float64).coalesce()
    i, j = laplacian.indices().numpy()
    stiff = coo_array((laplacian.values().numpy(), (i, j)), laplacian.shape)
    matrix = (eye_array(len(own)) + spread * stiff).tocsc()
    weights = torch.from_numpy(splu(matrix).solve(own.numpy())).clamp(min=0)
    top = weights.topk(keep, -1)
    kept = torch.where(top.values > 0.01 * top.values[:, :1], top.values, 0.0)
    return kept / kept.sum(-1, keepdim=True), top.indices


def shapes(mesh: Mesh) -> Tensor:
    """Fields (6, V, 3): girth, belly, chest and shoulders, hips and thighs, muscles of the limbs, head."""
    x, normal = mesh.vertices, vertex_normals(mesh.vertices, mesh.faces)

    def bump(centre: tuple[float, float, float], width: tuple[float, float, float]) -> Tensor:
        return (-0.5 * ((x - torch.tensor(centre)) / torch.tensor(width)).square().sum(-1)).exp()

    def pair(centre: tuple[float, float, float], width: tuple[float, float, float]) -> Tensor:
        return bump(centre, width) + bump((-centre[0], *centre[1:]), width)

    hands_and_feet = ((x[:, 0].abs() - 0.66) / 0.03).sigmoid() + ((0.1 - x[:, 1]) / 0.02).sigmoid()
    trunk = ((0.22 - x[:, 0].abs()) / 0.04).sigmoid()
    girth = (1 - hands_and_feet).clamp(min=0) * (0.006 + 0.01 * trunk * (1.45 - x[:, 1]).clamp(0, 0.1) * 10)
    belly = 0.02 * bump((0.0, 1.08, 0.09), (0.12, 0.1, 0.09))
    chest = 0.014 * bump((0.0, 1.33, 0.08), (0.14, 0.08, 0.1)) + 0.01 * pair((0.19, 1.42, 0.0), (0.08, 0.08, 0.1))
    hips = 0.014 * pair((0.13, 0.88, -0.03), (0.09, 0.1, 0.12)) + 0.01 * pair((0.1, 0.72, 0.0), (0.09, 0.12, 0.1))
    limbs = 0.008 * pair((0.3, 1.42, 0.0), (0.07, 0.1, 0.1)) + 0.007 * pair((0.55, 1.42, 0.0), (0.05, 0.1, 0.1))
    limbs = (
        limbs + 0.01 * pair((0.1, 0.33, -0.04), (0.08, 0.08, 0.08)) + 0.008 * pair((0.1, 0.65, 0.05), (0.1, 0.1, 0.1))
    )
    head = 0.007 * bump((0.0, 1.66, 0.0), (0.12, 0.09, 0.12))
    return torch.stack([girth, belly, chest, hips, limbs, head])[..., None] * normal


def bones() -> Tensor:
    """Logarithms (5, J, 2) of length and width: stature, legs, arms, trunk, breadth."""
    names = list(JOINTS)
    basis = torch.zeros(5, len(names), 2, dtype=torch.float64)

    def put(row: int, parts: tuple[str, ...], along: float, across: float) -> None:
        own = [k for k, name in enumerate(names) if any(part in name for part in parts)]
        basis[row, own] += torch.tensor([along, across], dtype=torch.float64)

    put(0, ("",), 0.04, 0.015)
    put(1, ("hip", "knee"), 0.04, 0.0)
    put(2, ("shoulder", "elbow"), 0.04, 0.0)
    put(3, ("pelvis", "spine", "neck"), 0.04, 0.0)
    put(4, ("collar",), 0.08, 0.0)
    put(4, ("spine3",), 0.0, 0.04)
    return basis


def poses(count: int, generator: torch.Generator) -> Tensor:
    """Rotations (count, J, 4): some 20 degrees an axis, elbows and knees bent by up to 130, wrists twisted by 75."""
    names = list(JOINTS)
    turn = 0.35 * torch.randn(count, len(names), 3, generator=generator, dtype=torch.float64)
    turn[:, [k for k, name in enumerate(names) if "spine" in name or "collar" in name]] *= 0.5
    for name, axis, most in (
        ("left_elbow", 1, -2.3),
        ("right_elbow", 1, 2.3),
        ("left_knee", 0, 2.3),
        ("right_knee", 0, 2.3),
        ("left_wrist", 0, 1.3),
        ("right_wrist", 0, 1.3),
    ):
        turn[:, names.index(name)] *= 0.3
        turn[:, names.index(name), axis] += most * torch.rand(count, generator=generator, dtype=torch.float64)
    turn[:, 0] = 0
    return quaternion.exp(turn)


def targets(body: BodyModel, quat_wxyz: Tensor) -> Tensor:
    """Offsets (N, V, 3) at rest that take linear skinning to where dual quaternions skin to."""
    state = replace(body.state(len(quat_wxyz)), quat_wxyz=quat_wxyz)
    posed = dqs(body.template, body.weights, body.transforms(state)[0], indices=body.indices)
    return (unpose(body, state, posed) - body.template).float()


def main(steps: int = 2500) -> None:
    torch.set_num_threads(1)
    mesh = surface()
    weights, indices = skin(mesh)
    parts = list(JOINTS.values())
    body = make_body(
        mesh.vertices,
        mesh.faces,
        parent=torch.tensor([p for p, *_ in parts]),
        joints=torch.tensor([x for _, *x in parts], dtype=torch.float64),
        weights=weights,
        indices=indices,
        shape_basis=shapes(mesh),
        skeleton_basis=bones(),
        names=list(JOINTS),
    )
    generator = torch.Generator().manual_seed(0)
    turns, unseen = poses(240, generator), poses(40, generator)
    owner = indices[:, 0]
    first = make_corrective(body.parent, owner, width=4, generator=generator)
    config = TrainConfig(steps=steps, batch=16, rate=5e-3, schedule=Cosine(warmup=20))
    rotations = quaternion.to_matrix(turns).float()
    corrective = fit_corrective(first, rotations, targets(body, turns), config=config, sparsity=1e-3)
    held = targets(body, unseen)
    left = (corrective.apply(quaternion.to_matrix(unseen).float()) - held).square().mean() / held.square().mean()
    size = 1e3 * float(held.square().sum(-1).mean().sqrt())
    print(f"{len(mesh.vertices)} vertices; of {size:.1f} mm the corrective leaves {float(left.sqrt()):.0%}")
    body = replace(body.to(torch.float32), corrective=corrective)
    path = HERE / "human.safetensors"
    body.save(path)
    print(f"wrote {path}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
