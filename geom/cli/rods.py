"""`geom rods fit | predict | simulate`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from geom.cli.outputs import Contents, check_outputs, write_outputs
from geom.errors import FileFormatError, ShapeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from geom.rods import Cable, Track

__all__ = ["fit", "predict", "simulate"]

ROD, GRIP = (0.12, 0.42, 0.75), (0.93, 0.46, 0.12)


def fit(
    clips: Positional[Path],
    /,
    *,
    out: Path,
    residual: Path | None = None,
    clamped: str = "0,1,-2,-1",
    branches: str = "",
    rate: float | None = None,
    linear_density: float = 0.02,
    hold_out: int = 5,
    iterations: int = 300,
    seed: int = 0,
) -> int:
    """Find the parameters of a cable from motion capture of its vertices.

    Args:
        clips: File with `x (clips, frames, vertices, 3)`, metres, z up (npz); NaN where a marker was lost.
        out: File for the parameters, as JSON.
        residual: File for the weights of a network that learns what the physics leaves over (safetensors); some
            minutes more.
        clamped: Vertices that are held and whose path is known; negative ones count from the end of the parent rod.
        branches: For branched cables "vertex,count;vertex,count": where each branch leaves, and its own vertices.
        rate: Frames a second; else the file's `rate`, else 100.
        linear_density: Mass of a metre of the cable, kg.
        hold_out: Every so manieth clip is not fitted, only scored; 0 fits all.
        iterations: Steps of gradient descent.
        seed: Of the first guesses.
    """
    check_outputs((out, residual), inputs=(clips,))
    import torch

    from geom.rods import Cable, guess_rod, identify, save_cable

    track, rate = _read(clips, rate)
    shape = _branches(branches)
    grips = _clamped(clamped, track.shape[2] - sum(count for _, count in shape))
    held_out = torch.zeros(len(track), dtype=torch.bool)
    if hold_out > 0 and len(track) > 1:
        held_out[::hold_out] = True
    found = identify(
        track,
        [guess_rod(track[~held_out], branches=shape, straight=s, linear_density=linear_density) for s in (False, True)],
        clamped=grips,
        dt=1 / rate,
        held_out=held_out,
        iterations=iterations,
        generator=torch.Generator().manual_seed(seed),
    )
    fitted, kept = (found.error[mask].mul(100) for mask in (~held_out, held_out))
    report: dict[str, Any] = {
        "score": "mean absolute error over vertices and coordinates, cm",
        "parameters": found.parameters,
        "iterations": iterations,
        "seed": seed,
        "fitted_mean": round(float(fitted.mean()), 4),
        "held_out": [round(x, 4) for x in kept.tolist()],
    }
    save_cable(out, Cable(found.value, grips, rate=rate, branches=shape), report)
    print(f"fitted         {len(fitted)} clips, {found.parameters} parameters, mean error {fitted.mean():.3f} cm")
    if len(kept):
        print(f"held out       {len(kept)} clips, mean error {kept.mean():.3f} cm, median {kept.median():.3f} cm")
    print(f"wrote {out}")
    if residual is not None:
        from geom.rods.residual import fit_residual

        network = fit_residual(found.value, track, clamped=grips, dt=1 / rate, substeps=4, held_out=held_out)
        network.save(residual)
        print(f"wrote {residual}")
    return 0


def predict(
    clips: Positional[Path],
    /,
    *,
    params: Path,
    out: Path,
    residual: Path | None = None,
    clamped: str | None = None,
    branches: str | None = None,
    rate: float | None = None,
) -> int:
    """Predict how a cable moves from the first two frames of each clip and the path of its clamped vertices.

    Args:
        clips: File with `x (clips, frames, vertices, 3)`, metres, z up (npz); of it frames 0 and 1 and the clamped
            vertices are used, the rest only to score.
        params: Parameters that `geom rods fit` wrote.
        out: File for the prediction: `x` as the clips', frames 0 and 1 copied (npz).
        residual: Weights of a residual network, trained on top of these parameters.
        clamped: Vertices that are held; else those of the parameters.
        branches: As in `geom rods fit`; must be those of the parameters.
        rate: Frames a second; else the file's `rate`, else the parameters'.
    """
    check_outputs((out,), inputs=filter(None, (clips, params, residual)))
    import numpy as np
    import torch

    from geom.files import write_atomically
    from geom.rods import Residual, load_cable, predict_with, track_errors
    from geom.rods import predict as roll

    cable = load_cable(params)
    track, rate = _read(clips, rate, cable.rate)
    n = len(cable.rod.parent)
    if track.shape[2] != n:
        raise FileFormatError(clips, f"expected {n} vertices, those of {params}, got {track.shape[2]}")
    if branches is not None and _branches(branches) != cable.branches:
        raise ShapeError(f"branches: expected those of {params}, {cable.branches}, got {branches!r}")
    grips = cable.clamped
    if clamped is not None:
        grips = _clamped(clamped, n - sum(count for _, count in cable.branches))
    held = None if clamped is not None else cable.held
    how = {"clamped": grips, "held": held, "dt": 1 / rate, "substeps": cable.substeps}
    with torch.no_grad():
        if residual is None:
            moved = roll(cable.rod, track, **how)
        else:
            moved = predict_with(cable.rod, Residual.load(residual), track, **how)
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=moved.numpy(), rate=rate)
    error = 100 * track_errors(moved, track)
    print(f"{len(track)} clips, mean error {error.mean():.3f} cm, median {error.median():.3f} cm, {_worst(error)}")
    write_atomically(out, buffer.getvalue())
    print(f"wrote {out}")
    return 0


def simulate(
    *,
    params: Path | None = None,
    seconds: float = 2.0,
    frames: int = 6,
    picture: Path | None = None,
    out: Path | None = None,
) -> int:
    """Swing a cable between two grips, and draw it: one grip goes towards the other, up and back.

    Args:
        params: Parameters that `geom rods fit` wrote; else a rubber cord of one metre.
        seconds: How long.
        frames: Pictures in the strip.
        picture: File for the strip of pictures, as PNG.
        out: File for the motion: `x (1, frames, vertices, 3)` and `rate` (npz).
    """
    check_outputs((picture, out), inputs=filter(None, (params,)))
    if not (0 < seconds <= 600 and 1 <= frames <= 100):
        raise ShapeError(f"seconds, frames: expected 0 to 600 and 1 to 100, got {seconds} and {frames}")
    import io

    import numpy as np

    from geom.files import write_atomically

    cable = _cord() if params is None else _cable(params)
    track = _swing(cable, seconds)
    x = track.position
    edge = (x - x[:, cable.rod.parent.clamp(min=0)]).norm(dim=-1)
    stretched = float(((edge - cable.rod.length).abs() / cable.rod.length.clamp(min=1e-9))[:, 1:].max())
    print(
        f"{seconds:g} s of {x.shape[1]} vertices, lowest point {float(x[..., 2].min()):.3f} m, "
        f"edges within {stretched:.1e} of their lengths"
    )
    contents: Contents = {}
    if picture is not None:
        contents[picture] = strip(cable, x[:: max(1, (len(x) - 1) // max(1, frames - 1))][:frames])
    write_outputs(contents)
    if out is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=x[None].numpy(), rate=cable.rate)
        write_atomically(out, buffer.getvalue())
        print(f"wrote {out}")
    return 0


def strip(cable: "Cable", x: "Tensor") -> "npt.NDArray[np.uint8]":
    """Frames (t, n, 3) side by side from one camera, (H, W, 3)."""
    import torch

    from geom.viz import Lines, View, render_strip

    child = (cable.rod.parent >= 0).nonzero()[:, 0]
    segments = torch.stack([cable.rod.parent[child], child], 1)
    low, high = x.amin((0, 1)), x.amax((0, 1))
    middle, reach = ((low + high) / 2).tolist(), float((high - low).norm())
    eye = (middle[0] + 0.3 * reach, middle[1] - 1.5 * reach, middle[2] + 0.3 * reach)
    view = View(size=(320, 320), camera=(eye, (middle[0], middle[1], middle[2]), (0.0, 0.0, 1.0)))
    panels = [[(Lines(frame, segments), ROD), (frame[list(cable.clamped)], GRIP)] for frame in x]
    return render_strip(panels, view=view)


def _cable(path: Path) -> "Cable":
    from geom.rods import load_cable

    return load_cable(path)


def _cord() -> "Cable":
    import torch

    from geom.rods import Cable, circular_section, make_rod

    line = torch.linspace(0, 1, 21)
    section = circular_section(young=2e6, radius=4e-3, density=1100.0)
    x = torch.stack([line, 0 * line, 0 * line], -1)
    rod = make_rod(x, EI=section.EI, GJ=section.GJ, linear_density=section.linear_density, drag=0.3, viscosity=0.01)
    return Cable(rod, (0, 1, 19, 20))


def _swing(cable: "Cable", seconds: float) -> "Track":
    """Hanging in an arc along x, branches straight down; the far grip comes nearer, lifts, and returns."""
    import torch

    from geom.rods import rollout, start
    from geom.values import replace

    rod = cable.rod
    parent = rod.parent.tolist()
    n = len(parent) - sum(count for _, count in cable.branches)
    x = torch.zeros(len(parent), 3, dtype=rod.length.dtype)
    for k, p in enumerate(parent):
        if p >= 0:
            turn = 1.2 * (k / n - 0.5)
            way = (math.cos(turn), 0.0, math.sin(turn)) if k < n else (0.0, 0.0, -1.0)
            x[k] = x[p] + rod.length[k] * x.new_tensor(way)
    grips = list(cable.clamped)
    first = start(rod, x, clamped=grips)
    steps = max(1, round(seconds * cable.rate)) * cable.substeps
    time = torch.arange(1, steps + 1, dtype=x.dtype)[:, None] / steps
    reach = float(x[:, 0].max())
    far = (x[grips, 0] > reach / 2).to(x.dtype)
    path = first.position[grips].expand(steps, -1, 3).clone()
    path[..., 0] -= 0.2 * reach * (1 - torch.cos(2 * math.pi * time)) * far
    path[..., 2] += 0.25 * reach * torch.sin(2 * math.pi * time) * far
    held = [k for k, p in enumerate(parent) if k in grips and p in grips]
    track = rollout(rod, first, clamped=grips, targets=path, held=held, dt=1 / (cable.rate * cable.substeps))
    frames = track.position[cable.substeps - 1 :: cable.substeps]
    return replace(track, position=torch.cat([first.position[None], frames]))


def _read(path: Path, rate: float | None, default: float = 100.0) -> "tuple[Tensor, float]":
    import numpy as np
    import torch

    from geom.io.arrays import read_arrays
    from geom.io.bytes import open_source

    source = open_source(path)
    arrays = read_arrays(source, ("x", "rate"))
    if "x" not in arrays or arrays.get("rate", np.zeros(1)).size != 1:
        raise source.fail("expected an npz with x (clips, frames, vertices, 3), and perhaps one number as rate")
    x, found = arrays["x"], arrays["rate"].item() if "rate" in arrays else default
    if x.ndim != 4 or x.shape[-1] != 3 or x.dtype.kind != "f" or min(x.shape) < 1 or x.shape[1] < 3:
        raise FileFormatError(path, f"expected x (clips, at least 3 frames, vertices, 3) of floats, got {x.shape}")
    chosen = found if rate is None else rate
    if not (math.isfinite(chosen) and chosen > 0):
        raise ShapeError(f"rate: expected frames a second above 0, got {chosen}")
    return torch.from_numpy(x.astype(np.float32)), chosen


def _clamped(text: str, n: int) -> tuple[int, ...]:
    """Vertices of the parent rod, which has n: "0,1,-2,-1"."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ShapeError(f'clamped: expected vertices as "0,1,-2,-1", got {text!r}') from None
    if any(not -n <= v < n for v in found) or len({v % n for v in found}) != len(found):
        raise ShapeError(f"clamped: expected different vertices from {-n} to {n - 1}, got {text!r}")
    return tuple(v % n for v in found)


def _branches(text: str) -> tuple[tuple[int, int], ...]:
    """Branches "vertex,count;vertex,count"."""
    pairs = [part.split(",") for part in text.split(";") if part.strip()]
    try:
        return tuple((int(a), int(b)) for a, b in pairs)
    except ValueError:
        raise ShapeError(f'branches: expected "vertex,count;vertex,count", got {text!r}') from None


def _worst(error: "Tensor") -> str:
    return f"worst {float(error.max()):.3f} cm (clip {int(error.argmax())})"
