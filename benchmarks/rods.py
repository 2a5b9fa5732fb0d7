"""Rods in time: geom beside PyElastica at equal physics, microseconds of a rod-step, and errors on motion capture."""

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.given import choose, data_folder
from benchmarks.harness import Case, Contender, least
from benchmarks.part import Request, installed
from benchmarks.report import BEST_PEER, ROOT
from benchmarks.rod_peers import FRAME, FRAMES, Array, Operation, geom, hanging, pyelastica
from benchmarks.rows import judged, untimed

__all__ = ["NOTES", "REFERENCE", "Gripped", "cases", "distance", "grip", "inputs", "score_cable", "tree", "truth"]

REFERENCE = BEST_PEER
NOTES = [
    f"cantilever: a cable of 1 m, radius 5 mm, 250 kg/m^3, E = 1 MPa, level and at rest, swings down from its clamped "
    f"end; times are of {FRAMES} frames of {1e3 * FRAME:g} ms, without building; geom in float32, stretching as the "
    "section does, in 1, 8 and 128 steps a frame for 12, 48 and 192 edges, PyElastica (float64, with shear) in 75, 80 "
    "and 160: each about the fewest with which it stays stable",
    "frame by frame: geom.rods.Stepper; torch: geom's torch twin; implicit: geom's implicit midpoint rule, float64, a "
    "step a frame; PyElastica does there what it does in the row of as many edges",
    "error: largest distance, mm, of 13 material points at the end from geom's 768 edges in float64 by the implicit "
    "midpoint rule at 5 steps a frame, from which PyElastica with 384 edges is 0.3 mm off; it is mostly that of the "
    "number of edges",
    "rod-steps: CPU time of a step of one rod, from whole calls of `rollout`, `Stepper.step` and `step`, the least of "
    "some rounds; a cable of 1 m (EI = 5e-4 N m^2, 0.02 kg/m, float32) between two grips of two vertices each that "
    "move; steps of 10 ms with 12 edges, else as long as is stable; tree: 13 vertices and branches of 4 and 3, as "
    "DEFT's BDLO1; gradient: forward and backward, to the parameters; aim: of 31.2 us it is 0.5 s in all",
    "all cores: wall time of a step of all 4,096 rods, and 10 ms of motion in it",
    "motion capture: clips 0, 5, 10, ... of DEFORM's and DEFT's training clips, held out from the fit; DEFORM's score, "
    "the mean absolute error over vertices and coordinates summed over the frames and divided by 500, in cm; network: "
    "with the residual network, whose best weights these same clips chose",
    "beside it DEFORM's printed scores, with its network, on its own evaluation clips, which are others and are not "
    "here: not one split, so no ratio; DEFT's own score for bdlo1 and bdlo3 is another and stands in assets/rods",
    "quoted, measured elsewhere on a like machine, one thread, 12 or 13 nodes: DEFORM's code 22.0 ms a step in torch, "
    "11.4 in numpy, 132 with gradient at batch 14; DEFT's 17.8 ms a step in numba, 190 in torch at batch 24; "
    "published: DEFORM 9.2 to 9.7 ms a step, DEFT more than 100 steps a second",
]
_SWING, _STEPS, _CORES, _CLIPS = "cantilever", "rod-steps", "all cores", "motion capture"
_LIBRARIES = [("geom", ("geom", geom)), ("elastica", ("pyelastica", pyelastica))]
_DEFORM = {"dlo1": 1.01, "dlo2": 0.97, "dlo3": 0.77, "dlo4": 0.85, "dlo5": 0.99}  # printed, cm
_MANY = 4096


def inputs(names: tuple[str, ...]) -> list[str]:
    """The cases of these names. Raises: GeomError for a name that is not there."""
    return choose([_SWING, _STEPS, _CORES, _CLIPS], names)


def cases(request: Request, threads: int) -> tuple[int, Iterator[Case], list[str]]:
    chosen = inputs(request.inputs) or [_SWING, _STEPS, _CORES, _CLIPS]
    if request.device == "cpu":  # those that say nothing new with this number of threads
        chosen = [x for x in chosen if x not in ((_CORES,) if request.clock == "cpu" else (_STEPS, _CLIPS))]
    found, absent = installed(_LIBRARIES)
    rounds = 3 if request.quick else 15

    def make() -> Iterator[Case]:
        for name in chosen:
            if name == _SWING:
                contenders = []
                for library, start in found:
                    operations = start(request.device, request.quick)
                    contenders += [_contender(library, method, operations[method]) for method in operations]
                yield Case(name, contenders)
            elif name == _STEPS:
                yield Case(name, _rod_steps(request, rounds), timed=False)
            elif name == _CORES:
                yield Case(name, [_all_cores(request.device, threads, rounds)], timed=False)
            else:
                contenders = _clips()
                missing = "left out, no cables in assets/rods or no clips under GEOM_DATA" if not contenders else ""
                yield Case(name, contenders, missing, timed=False)

    return len(chosen), make(), absent


def _contender(library: str, method: str, operation: Operation) -> Contender:
    judge = judged(lambda output: {"error_mm": distance(operation.read(output), truth())})
    return Contender(library, method, lambda seed: operation.prepare(), judge, operation.calls)


@cache
def truth() -> Array:
    """13 points of the cantilever after the last frame, (13, 3)."""
    from geom.rods.implicit import implicit_midpoint

    rod, state = hanging(768, torch.float64)
    track = implicit_midpoint(rod, state, steps=5 * FRAMES, dt=FRAME / 5, clamped=[0, 1], held=[1])
    return track.end.position[::64].numpy()


def distance(found: Array, exact: Array) -> float:
    """The largest, mm, over the points of `exact`."""
    return 1e3 * float(np.linalg.norm(found[:: (len(found) - 1) // (len(exact) - 1)] - exact, axis=-1).max())


class Gripped(NamedTuple):
    """A rod (or tree) between two grips: its state at rest, where the grips are, and what they do."""

    rod: Any
    state: Any
    clamped: list[int]
    held: list[int]
    targets: torch.Tensor
    dt: float

    def how(self) -> dict[str, Any]:
        return {"clamped": self.clamped, "held": self.held, "dt": self.dt}


def grip(nodes: int, steps: int, device: str = "cpu", batch: tuple[int, ...] = (), branches: bool = False) -> Gripped:
    """A sagging arc of 1 m whose second grip goes to and fro by 5 cm, once a second; with `branches` that hang."""
    from geom.rods import make_rod, start

    angle = torch.linspace(-1, 1, nodes, dtype=torch.float64)
    x = 0.5 * torch.stack([angle.sin(), 0 * angle, -angle.cos()], -1)
    edge = float((x[1] - x[0]).norm())
    joints = {}
    if branches:
        x, joints = tree(x, edge, device)
    x = x.to(device, torch.float32)
    rod = make_rod(x, EI=5e-4, GJ=3e-4, drag=0.5, **joints)
    dt = min(FRAME, 0.4 * edge**2 * (0.02 / 5e-4) ** 0.5)
    clamped = [0, 1, nodes - 2, nodes - 1]
    state = start(rod, x.expand(*batch, -1, 3), clamped=clamped, held=[1, nodes - 1])
    turn = 2 * torch.pi * dt * torch.arange(1, steps + 1, device=device)
    move = 0.05 * torch.stack([turn.cos() - 1, turn.sin(), 0 * turn], -1)
    targets = state.position[..., None, clamped, :].repeat(*[1] * len(batch), steps, 1, 1)
    targets[..., 2:, :] += move[:, None]
    return Gripped(rod, state, clamped, [1, nodes - 1], targets, dt)


def tree(parent: torch.Tensor, edge: float, device: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Vertices with branches of 4 and 3 at vertices 4 and 8, and how `make_rod` joins them."""
    grown = [parent]
    for vertex, own, side in ((4, 4, 0.6), (8, 3, -0.6)):
        along = edge * torch.arange(1, own + 1, dtype=parent.dtype)[:, None]
        grown.append(parent[vertex] + along * torch.tensor([0, side, -0.8], dtype=parent.dtype))
    offsets = torch.tensor([0, *(len(x) for x in grown)]).cumsum(0).to(device)
    return torch.cat(grown), {"offsets": offsets, "junctions": [(4, 1), (8, 2)]}


Run = tuple[Callable[[], Any], int, Any]  # the work, rod-steps in it, and the rod; the work returns positions


def _rod_steps(request: Request, rounds: int) -> list[Contender]:
    from geom.rods import Stepper, rollout, step
    from geom.values import replace

    device, long, longer = request.device, *((100, 100) if request.quick else (500, 2000))  # whole seconds of 10 ms

    def rolled(nodes: int, steps: int, batch: tuple[int, ...] = (), branches: bool = False) -> Run:
        g = grip(nodes, steps, device, batch, branches)
        count = steps * (batch[0] if batch else 1)
        return lambda: rollout(g.rod, g.state, targets=g.targets, **g.how()).end.position, count, g.rod

    def interactive(branches: bool = False) -> Run:
        g = grip(13, long, device, branches=branches)
        stepper = Stepper(g.rod, g.state, **g.how())
        return lambda: [stepper.step(target) for target in g.targets][-1], long, g.rod

    def one_by_one(steps: int, backend: str) -> Run:
        g = grip(13, steps, device)

        def work() -> Any:
            state = g.state
            for target in g.targets:
                state = step(g.rod, state, targets=target, **g.how(), backend=backend)
            return state.position

        return work, steps, g.rod

    def gradient() -> Run:
        g = grip(13, long, device, (32,))
        names = ("length", "mass", "bend_stiffness", "twist_stiffness", "curvature", "twist", "drag", "viscosity")

        def work() -> Any:
            leaves = {name: getattr(g.rod, name).clone().requires_grad_() for name in names}
            track = rollout(replace(g.rod, **leaves), g.state, targets=g.targets, **g.how())
            torch.autograd.grad(track.position.square().mean(), list(leaves.values()))
            return track.end.position.detach()

        return work, 32 * long, g.rod

    def by_torch(steps: int) -> Run:
        g = grip(13, steps, device)
        how = {"targets": g.targets, **g.how(), "backend": "torch"}
        return lambda: rollout(g.rod, g.state, **how).end.position, steps, g.rod

    many = 256 if request.quick else _MANY
    rows: list[tuple[str, float, Callable[[], Run]]] = [
        ("rollout, 13 nodes", 3, lambda: rolled(13, longer)),
        ("rollout, 13 nodes, 32 rods", 3, lambda: rolled(13, long, (32,))),
        (f"rollout, 13 nodes, {many:,} rods", 3, lambda: rolled(13, 10, (many,))),
        ("rollout, 50 nodes", 0, lambda: rolled(50, longer)),
        ("rollout, 200 nodes", 40, lambda: rolled(200, longer)),
        ("rollout, tree of 13 + 4 + 3 nodes", 30, lambda: rolled(13, longer, branches=True)),
        ("Stepper, 13 nodes", 60, interactive),
        ("Stepper, tree of 13 + 4 + 3 nodes", 30, lambda: interactive(branches=True)),
        ("step, 13 nodes", 0, lambda: one_by_one(20, "auto")),
        ("torch rollout, 13 nodes", 1000, lambda: by_torch(20)),
        ("torch step, 13 nodes", 1000, lambda: one_by_one(20, "torch")),
        ("rollout with gradient, 13 nodes, 32 rods", 31.25, gradient),
    ]
    cuda = device == "cuda"
    return [_measured(name, aim, make, rounds, cuda) for name, aim, make in rows if not (cuda and "torch" in name)]


def _measured(name: str, aim: float, make: Callable[[], Run], rounds: int, cuda: bool) -> Contender:
    """The least of `rounds`; an `aim` of 0 is none."""

    def work() -> dict[str, float]:
        run, count, rod = make()
        took, position = _least(run, rounds, cuda)
        edge = (position - position[..., rod.parent, :])[..., rod.parent >= 0, :].double().norm(dim=-1)
        length = rod.length[rod.parent >= 0].double()
        scores = {"us_per_rod_step": 1e6 * took / count}
        if aim:
            scores["aim_us"] = aim
        return {**scores, "edge_error_rel": float((edge / length - 1).abs().max())}

    return untimed("geom", f"{name}:", work)


def _least(run: Callable[[], Any], rounds: int, cuda: bool, *, wall: bool = False) -> tuple[float, Any]:
    """Seconds, CPU time unless told otherwise, and what the last run gave; the first run is not counted."""
    run()
    clock = time.perf_counter if wall or cuda else time.process_time
    return least([run], rounds, clock=clock, finish=torch.cuda.synchronize if cuda else lambda: None)[0]


def _all_cores(device: str, threads: int, rounds: int) -> Contender:
    from geom.rods import rollout

    def work() -> dict[str, float]:
        g = grip(13, 20, device, (_MANY,))
        run = lambda: rollout(g.rod, g.state, targets=g.targets, **g.how()).end.position  # noqa: E731
        took, _ = _least(run, rounds, device == "cuda", wall=True)
        return {"wall_ms_per_step": 1e3 * took / 20, "aim_ms": 1e3 * FRAME, "threads": threads}

    return untimed("geom", f"{_MANY:,} rods of 13 nodes:", work)


def _clips() -> list[Contender]:
    """Each shipped cable on the clips that its fit did not see, where those are."""
    found = []
    for params in sorted((ROOT / "assets" / "rods").glob("*dlo*.json")):
        for kind, grip in (("", None), ("_mid_clamp", 2)):
            for clips in (data_folder() / "rods").glob(f"*_{params.stem}{kind}_train.npz"):
                name, work = params.stem + kind.replace("_", " "), score_cable(params, clips, grip)
                found.append(untimed("geom", f"{name}:", work))
    return found


def score_cable(params: Path, clips: Path, grip: int | None = None) -> Callable[[], dict[str, float]]:
    """How far a shipped cable is from every fifth clip, cm; the first grip on one vertex instead, where told so."""

    def work() -> dict[str, float]:
        from geom.rods import load_cable, predict, track_errors
        from geom.rods.residual import Residual, predict_with

        cable = load_cable(params)
        with np.load(clips) as arrays:
            track = torch.from_numpy(arrays["x"][::5].astype(np.float32))
        clamped = cable.clamped if grip is None else (grip, *cable.clamped[2:])
        how = {"clamped": clamped, "held": cable.held, "dt": 1 / cable.rate, "substeps": cable.substeps}
        error = track_errors(predict(cable.rod, track, **how), track)
        scores = {"mean_cm": 100 * float(error.mean()), "median_cm": 100 * float(error.median())}
        weights = params.with_suffix(".safetensors")
        known = json.loads(params.read_text())["report"]
        if weights.exists() and "with_residual" in known:  # else they are of another fit
            with torch.no_grad():
                error = track_errors(predict_with(cable.rod, Residual.load(weights), track, **how), track)
            scores["with_network_mean_cm"] = 100 * float(error.mean())
        if params.stem in _DEFORM:
            scores["DEFORM_on_other_clips_cm"] = _DEFORM[params.stem]
        return scores

    return work
