"""Caps that are made here: hats, peaked caps, caps with visors, and those with a cuff, of any proportions.

A crown is a curve, from its lower edge to its top, turned about the vertical over an ellipse; a brim is a sheet that
begins at that edge. Both may have a second sheet within, as shells have. y is up and the front at +x.
"""

import math

import torch
from torch import Tensor

KINDS = ("visor", "peaked", "hat", "cuff")
SHARES = (0.4, 0.2, 0.28, 0.12)
Corners = list[tuple[float, float]]


def between(low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(torch.rand(()))


def chance(share: float) -> bool:
    """True so often."""
    return float(torch.rand(())) < share


def curve(corners: Corners, rounds: int) -> Tensor:
    """Places (K, 2), radius and height, on a line through corners that are cut `rounds` times (Chaikin, 1974)."""
    line = torch.tensor(corners)
    for _ in range(rounds):
        a, b = line[:-1], line[1:]
        inner = torch.stack([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b], 1).flatten(0, 1)
        line = torch.cat([line[:1], inner[1:-1], line[-1:]])
    return line


def turned(line: Tensor, count: int) -> Tensor:
    """Points (count, 3) on a curve turned about y, as many everywhere: of each piece by its area."""
    a, b = line[:-1], line[1:]
    area = (b - a).norm(dim=1) * (a[:, 0] + b[:, 0]).clamp(min=1e-3)
    piece, along = torch.multinomial(area, count, replacement=True), torch.rand(count, 1)
    radius, height = (a[piece] + along * (b - a)[piece]).T
    angle = 2 * math.pi * torch.rand(count)
    return torch.stack([radius * angle.cos(), height, radius * angle.sin()], 1)


def area(line: Tensor) -> float:
    """Of the surface that `turned` covers, over 2 pi."""
    a, b = line[:-1], line[1:]
    return float(((b - a).norm(dim=1) * (a[:, 0] + b[:, 0]) / 2).sum())


def dome(height: float, power: float, straight: float) -> Tensor:
    """A curve (K, 2): straight up, and over as a superellipse."""
    up = torch.linspace(0, math.pi / 2, 16)
    top = torch.stack([up.cos().clamp(min=0) ** (2 / power), straight + height * up.sin() ** (2 / power)], 1)
    return torch.cat([torch.tensor([[1.0, 0.0]]), top])


def make_crown(kind: str) -> Tensor:
    """The curve (K, 2) of a crown, whose lower edge has radius 1 and height 0."""
    if kind == "peaked":  # a band, wider above, a flat top
        band, wide = between(0.1, 0.4), between(1.0, 1.5)
        high = band + between(0.1, 0.5)
        rim = (wide - 0.02, high + between(0, 0.1))
        return curve([(1, 0), (between(0.95, 1.03), band), (wide, high), rim, (0, high + between(-0.05, 0.25))], 1)
    if kind == "hat" and chance(0.6):  # a wall, an edge, a top with a dent
        top, high = between(0.55, 1.15), between(0.4, 1.6)
        return curve([(1, 0), (top, high), (0.6 * top, high + between(-0.1, 0.15)), (0, high + between(-0.3, 0.1))], 3)
    if kind == "visor" and chance(0.15):  # soft, hanging over
        wide, high = between(1.0, 1.25), between(0.3, 0.7)
        return curve([(1, 0), (wide, 0.6 * high), (0.8 * wide, high), (0, high + between(0, 0.1))], 2)
    tall = {"visor": (0.5, 1.1), "hat": (0.4, 1.2), "peaked": (0.5, 1.0), "cuff": (0.6, 1.6)}[kind]
    return dome(between(*tall), between(1.7, 3.5), between(0, 0.3) if chance(0.5) else 0.0)


def visor(count: int, kind: str) -> tuple[Tensor, float]:
    """Points of a sheet in front, flat or bent or sloping, and its area over 2 pi."""
    half, long = between(0.6, 1.6), between(0.2, 0.6) if kind == "peaked" else between(0.3, 1.2)
    if kind == "peaked":
        half = between(0.5, 1.6)
    inside = between(0.0, 0.3) if chance(0.5) else 0.0  # the sheet goes on below the crown
    power, forward = between(0.35, 1.1), float(torch.rand(()))
    side = half * (2 * torch.rand(count) - 1)
    reach = long * (math.pi / 2 * side / half).cos().clamp(min=0) ** power
    out = torch.rand(count) * (reach + inside) - inside
    x = side.cos() * (1 + out * (1 - forward)) + out * forward
    z = side.sin() * (1 + out * (1 - forward))
    slope, bend = between(-0.1, 0.7) if chance(0.6) else 0.0, between(0, 0.6) if chance(0.5) else 0.0
    y = -slope * out - bend * z.square() * (out / 0.4).clamp(0, 1)
    return torch.stack([x, y, z], 1), 2 * half * (0.65 * long + inside) * (1 + 0.4 * long) / (2 * math.pi)


def round_brim(count: int) -> tuple[Tensor, float]:
    """Points of a sheet all around, flat, sloping, turned up at its end or at its sides, and its area over 2 pi."""
    long = between(0.12, 1.0)
    angle = 2 * math.pi * torch.rand(count)
    share = ((1 + long * (2 + long) * torch.rand(count)).sqrt() - 1) / long
    out = share * long * (1 + between(-0.2, 0.2) * angle.cos() + between(-0.15, 0.25) * (2 * angle).cos())
    slope = between(-0.3, 0.5) if chance(0.7) else between(0.5, 1.5)
    sides = between(0, 0.9) if chance(0.35) else 0.0
    front = between(-0.5, 0.1) if chance(0.3) else 0.0
    wave = between(-0.1, 0.25) if chance(0.5) else 0.0
    y = out * (-slope + sides * angle.sin().square() * share + front * angle.cos() * share)
    y = y - wave * (math.pi * share).sin()
    ring = torch.stack([(1 + out) * angle.cos(), y, (1 + out) * angle.sin()], 1)
    return ring, long * (1 + long / 2) * math.hypot(1, slope)


def cuff(count: int) -> tuple[Tensor, float]:
    """Points of a band around the lower edge, below it or beside it, and its area over 2 pi."""
    wide, high, below = between(1.0, 1.2), between(0.15, 0.7), float(torch.rand(())) if chance(0.6) else 1.0
    low, up = -below * high, (1 - below) * high
    line = curve([(between(0.95, wide), low), (wide, low), (wide + between(-0.08, 0.05), up), (1, up)], 1)
    return turned(line, count), area(line)


def details(count: int, kind: str, line: Tensor) -> list[tuple[Tensor, float]]:
    """What else a crown may have, and the areas over 2 pi."""
    found = []
    if chance(0.3):  # a button, or a bobble
        radius = between(0.1, 0.3) if kind == "cuff" else between(0.03, 0.08)
        ball = radius * torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
        found.append((ball + torch.tensor([0.0, float(line[-1, 1]), 0.0]), 2 * radius * radius))
    if chance(0.3):  # a ribbon, or a band within
        ribbon = curve([(1, 0), (between(0.97, 1.03), between(0.08, 0.25))], 0) * between(0.96, 1.04)
        found.append((turned(ribbon, count), area(ribbon) * 2))
    if chance(0.2):  # a floor
        place = torch.tensor([between(0.9, 1.0), between(0, 0.4) * float(line[:, 1].max())])
        floor = torch.tensor([[0.0, 1.0], [1.0, 1.0]]) * place
        found.append((turned(floor, count), area(floor)))
    return found


def shaped(points: Tensor, upper: Tensor, kind: str, top: float) -> Tensor:
    """Points (count, 3) of which those of the crown, `upper` (count,), may lean, and may have a crease."""
    height = (points[:, 1] / top).clamp(min=0)
    if chance(0.6 if kind == "peaked" else 0.25):
        lean = between(-0.15, 0.35) if kind == "peaked" else between(-0.25, 0.25)
        points[:, 1] += torch.where(upper, lean * points[:, 0] * height, 0.0)
    if chance(0.3):
        dent = between(0, 0.3) * torch.exp(-(points[:, 2] / between(0.15, 0.4)).square()) * height.square()
        points[:, 1] -= torch.where(upper, dent * top, 0.0)
    return points


def make_cap(count: int) -> tuple[Tensor, Tensor]:
    """Points (count, 3) and parts (count,), 0 of the crown and 1 of the brim, of a cap of any of KINDS."""
    kind = KINDS[int(torch.multinomial(torch.tensor(SHARES), 1))]
    line = make_crown(kind)
    brim, size = round_brim(count) if kind == "hat" else cuff(count) if kind == "cuff" else visor(count, kind)
    within, thick = chance(0.5), between(0.01, 0.06) if chance(0.5) else 0.0
    crown = turned(line, count)
    if within:
        inner = torch.rand(count, 1) < 0.5
        crown = torch.where(inner, crown * (1 - between(0.01, 0.12)), crown)
    if thick:
        brim = brim + thick * torch.tensor([0.0, 1.0, 0.0]) * (torch.rand(count, 1) < 0.5)
        if kind == "cuff":
            brim = brim * (1 - thick * torch.tensor([1.0, 0.0, 1.0]) * (torch.rand(count, 1) < 0.5))
    pieces = [(brim, size * (2 if thick else 1)), (crown, area(line) * (2 if within else 1))]
    sheets, sizes = zip(*pieces, *details(count, kind, line), strict=True)
    which = torch.multinomial(torch.tensor(sizes), count, replacement=True)
    parts, top = (which == 0).long(), float(line[:, 1].max())
    points = shaped(torch.stack(sheets)[which, torch.arange(count)], parts == 0, kind, top)
    if chance(0.15):  # an opening behind
        gone = (points[:, 0] < 0) & ((points[:, 2] / 0.4).square() + (points[:, 1] / (0.35 * top)).square() < 1)
        keep = (~(gone & (parts == 0))).nonzero()[:, 0]
        keep = keep[torch.randint(len(keep), (count,))]
        points, parts = points[keep], parts[keep]
    return points * torch.tensor([between(0.9, 1.35), 1.0, 1.0]), parts
