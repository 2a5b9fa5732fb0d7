"""A cable that swings down from its clamped end, in geom and in PyElastica."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FRAME", "FRAMES", "Library", "Operation", "SUBSTEPS", "geom", "hanging", "pyelastica"]

Array = NDArray[np.float64]
Work = Callable[[], Any]

LENGTH, YOUNG, RADIUS, DENSITY, POISSON = 1.0, 1e6, 5e-3, 250.0, 0.5  # m, Pa, m, kg/m^3
FRAME, FRAMES = 0.01, 30  # seconds, and how many
SUBSTEPS = {"geom": {12: 1, 48: 8, 192: 128}, "pyelastica": {12: 75, 48: 80, 192: 160}}  # of a frame, by edges
_FRAMES, _TORCH, _SEVERAL = "12 edges, frame by frame", "12 edges, torch", "12 edges, 32 cables"
_IMPLICIT = "192 edges, implicit"


class Operation(NamedTuple):
    """`prepare()` is not timed and gives the work that is; `read` makes positions (edges + 1, 3) at the end of its
    result; worked `calls` times a run."""

    prepare: Callable[[], Work]
    read: Callable[[Any], Array]
    calls: int = 1


Library = dict[str, Operation]


def geom(device: str, quick: bool) -> Library:
    from geom.rods import Stepper, rollout
    from geom.rods.implicit import implicit_midpoint

    def once(edges: int, batch: tuple[int, ...] = (), backend: str = "auto") -> Operation:
        import torch

        rod, state = hanging(edges, torch.float32, device, batch)
        substeps = SUBSTEPS["geom"][edges]
        settings = {"steps": FRAMES * substeps, "dt": FRAME / substeps, "clamped": [0, 1], "held": [1]}

        def work() -> Any:
            return rollout(rod, state, **settings, backend=backend)

        return Operation(lambda: work, _end_of_track, 1 if backend == "torch" or edges > 12 else 10)

    def by_frames() -> Operation:
        import torch

        rod, state = hanging(12, torch.float32, device)

        def prepare() -> Work:
            stepper = Stepper(rod, state, clamped=[0, 1], held=[1], dt=FRAME)
            return lambda: [stepper.step() for _ in range(FRAMES)]

        return Operation(prepare, lambda found: found[-1].double().cpu().numpy())

    def implicit() -> Operation:
        import torch

        rod, state = hanging(192, torch.float64, device)

        def work() -> Any:
            return implicit_midpoint(rod, state, steps=FRAMES, dt=FRAME, clamped=[0, 1], held=[1])

        return Operation(lambda: work, _end_of_track)

    few = {"12 edges": once(12), _FRAMES: by_frames(), _TORCH: once(12, backend="torch")}
    many = {_SEVERAL: once(12, (32,)), "48 edges": once(48), "192 edges": once(192), _IMPLICIT: implicit()}
    return few if quick else {**few, **many}


def hanging(edges: int, dtype: Any, device: str = "cpu", batch: tuple[int, ...] = ()) -> tuple[Any, Any]:
    """The rod, level, and its state at rest."""
    import torch

    from geom.rods import circular_section, make_rod, start

    s = torch.linspace(0, LENGTH, edges + 1, dtype=torch.float64)
    x = torch.stack([s, 0 * s, 0 * s], -1).to(device, dtype)
    rod = make_rod(x, **circular_section(young=YOUNG, radius=RADIUS, density=DENSITY, poisson=POISSON)._asdict())
    return rod, start(rod, x.expand(*batch, -1, 3), clamped=[0, 1], held=[1])


def _end_of_track(track: Any) -> Array:
    end = track.end.position
    return end.reshape(-1, *end.shape[-2:])[-1].double().cpu().numpy()


def pyelastica(device: str, quick: bool) -> Library:
    import elastica

    ea: Any = elastica  # it does not say what it exports

    class Cables(ea.BaseSystemCollection, ea.Constraints, ea.Forcing):
        pass

    def cable(cables: Any, edges: int) -> Any:
        rod = ea.CosseratRod.straight_rod(
            edges,
            np.zeros(3),
            np.array([1.0, 0.0, 0.0]),
            np.array([0.0, 0.0, 1.0]),
            LENGTH,
            RADIUS,
            DENSITY,
            youngs_modulus=YOUNG,
            shear_modulus=YOUNG / (2 * (1 + POISSON)),
        )
        cables.append(rod)
        fixed = {"constrained_position_idx": (0,), "constrained_director_idx": (0,)}
        cables.constrain(rod).using(ea.OneEndFixedBC, **fixed)
        cables.add_forcing_to(rod).using(ea.GravityForces, acc_gravity=np.array([0.0, 0.0, -9.81]))
        return rod

    def swing(edges: int, count: int = 1) -> Operation:
        substeps = SUBSTEPS["pyelastica"][edges]
        dt = np.float64(FRAME / substeps)

        def prepare() -> Work:
            cables = Cables()
            rods = [cable(cables, edges) for _ in range(count)]
            cables.finalize()
            stepper = ea.PositionVerlet()

            def work() -> Any:
                time = np.float64(0)
                for _ in range(FRAMES * substeps):
                    time = stepper.step(cables, time, dt)
                return rods[-1]

            return work

        return Operation(prepare, lambda rod: rod.position_collection.T.copy())

    few = {name: swing(12) for name in ("12 edges", _FRAMES, _TORCH)}
    many = {_SEVERAL: swing(12, 32), "48 edges": swing(48), **{name: swing(192) for name in ("192 edges", _IMPLICIT)}}
    return few if quick else {**few, **many}
