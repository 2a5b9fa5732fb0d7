"""Two grippers lay a cable into a wanted shape: `python examples/plan_shape.py`.

A cable hangs between two grippers. It shall hang as the dashed line shows: turned, lifted, closer together. `plan`
finds how the grippers move, never faster than 0.22 m/s and 0.7 rad/s, by the gradient of the whole motion, through the
adjoint of the simulation. The picture shows the cable on its way, and the grippers' speeds below their limits; the
number is how far the cable's farthest vertex is from the goal in the end.
"""

from pathlib import Path

import torch
import tyro
from matplotlib import colormaps
from matplotlib.figure import Figure

from geom.lie import Rigid, quaternion
from geom.rods import equilibrium, make_rod, plan, rollout

GRIPS, DT, SPEED, TURN = (0, 1, -2, -1), 0.01, 0.22, 0.7  # vertices, s, m/s, rad/s


def main(quick: bool = False, out: Path = Path("out/examples/plan_shape.png")) -> float:
    """Plan the motion, run it, draw it, and check where the cable ends.

    Args:
        quick: Half the iterations, a smaller picture.
        out: The picture, a PNG, or a folder for it.

    Returns: the distance of the farthest vertex from the goal, metres.
    """
    slope = torch.linspace(-1.1, 1.1, 12, dtype=torch.float64)
    arc = torch.zeros(13, 3, dtype=torch.float64)
    arc[1:, 0], arc[1:, 2] = (0.1 * slope.cos()).cumsum(0), (0.1 * slope.sin()).cumsum(0)
    rod = make_rod(arc, EI=6e-4, GJ=4e-4, drag=1.0, viscosity=0.03)
    held = [1, 12]
    begin = equilibrium(rod, arc, clamped=GRIPS, held=held).value

    # the goal: at rest between grips that were turned about themselves, and put elsewhere
    turns = quaternion.exp(torch.tensor([[0.0, -1.6, 0.4], [0.3, 1.5, 1.0]], dtype=torch.float64))
    shifts = torch.tensor([[0.15, 0.1, 0.1], [-0.3, 0.35, 0.25]], dtype=torch.float64)
    pairs = begin.position[list(GRIPS)].reshape(2, 2, 3)
    middle = pairs.mean(1, keepdim=True)
    wanted = (Rigid(turns, shifts).apply(pairs - middle) + middle).reshape(4, 3)
    goal = equilibrium(rod, begin.position, clamped=GRIPS, held=held, targets=wanted).value.position

    found = plan(
        rod,
        begin,
        goal,
        clamped=GRIPS,
        steps=400,
        rest=100,
        dt=DT,
        max_speed=SPEED,
        max_turn=TURN,
        iterations=25 if quick else 80,
    )
    track = rollout(rod, begin, clamped=GRIPS, targets=found.targets, held=held, dt=DT).position
    error = float((track[-1] - goal).norm(dim=-1).max())
    print(f"grips at most {float(found.speed):.3f} m/s and {float(found.turn):.3f} rad/s")
    print(f"farthest vertex {1e3 * error:.2f} mm from the goal; success: {bool(found.converged)}")

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.7, 1))
    panel = figure.add_subplot(left, projection="3d")
    shapes = torch.cat([begin.position[None], track])
    for place, frame in enumerate((0, 100, 150, 200, 400)):
        x, color = shapes[frame], colormaps["viridis"](0.95 - 0.23 * place)
        panel.plot(*x.T, color=color, lw=3, label=f"{DT * frame:.1f} s")
        for grip in (x[:2], x[-2:]):
            panel.plot(*grip.T, color="0.15", lw=6, solid_capstyle="round")
    panel.plot(*goal.T, color="tab:red", ls=(0, (2, 2)), lw=2, zorder=10, label="the goal")
    for grip in (0, 1):
        path = found.value.translation[:, grip]
        panel.plot(*path.T, color="0.6", lw=1)
    panel.set(xlabel="x, m", ylabel="y, m", zlabel="z, m", yticks=(0.0, 0.2, 0.4))
    panel.view_init(elev=18, azim=-65)
    panel.set_aspect("equal")
    panel.legend(loc="upper left", fontsize=9)

    speed = found.value.translation.diff(dim=0).norm(dim=-1) / DT
    before, after = found.value.quat_wxyz[:-1], found.value.quat_wxyz[1:]
    turn = quaternion.geodesic_distance(before, after) / DT
    time = DT * torch.arange(2, 401)
    panels = figure.add_subfigure(right).subplots(2, 1, sharex=True)
    for panel, rate, limit, name in zip(panels, (speed, turn), (SPEED, TURN), ("m/s", "rad/s"), strict=True):
        panel.plot(time, rate, label=["left grip", "right grip"])
        panel.axhline(limit, color="tab:red", ls="--", lw=1.5, label="limit")
        panel.set(ylabel=name, ylim=(0, 1.35 * limit))
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=9, ncols=3, loc="upper center", columnspacing=1, handlelength=1.4)
    panels[1].set_xlabel("time, s")
    picture = out if out.suffix == ".png" else out / "plan_shape.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=60 if quick else 110)
    print(f"wrote {picture}")

    bound = 0.05 if quick else 0.01
    assert error < bound, f"expected every vertex within {bound} m of the goal, got {error:.4f} m"
    return error


if __name__ == "__main__":
    tyro.cli(main)
