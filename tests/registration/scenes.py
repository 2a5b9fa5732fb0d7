"""Scenes to scan: points on a room with furniture, a blob, a corridor and a plane, and noisy pairs of them."""

import math

import torch
from torch import Tensor

from geom.lie import Rigid, se3


def room(generator: torch.Generator, count: int) -> Tensor:
    """Points on the inside of a box of 8 x 6 x 3 m and on three boxes in it."""
    boxes = [((0, 0, 0), (8, 6, 3)), ((1, 1, 0), (1.5, 1, 1)), ((5, 3.5, 0), (1, 2, 1.4)), ((3, 0.5, 1), (2, 0.4, 0.8))]
    corner, size = (torch.tensor(x, dtype=torch.float64) for x in zip(*boxes, strict=True))
    area = torch.stack([size.roll(-1, 1)[:, a] * size.roll(-2, 1)[:, a] for a in range(3)], 1)  # of the face across a
    face = torch.multinomial(area.flatten(), count, replacement=True, generator=generator)
    box, axis = face // 3, face % 3
    unit = torch.rand((count, 3), generator=generator, dtype=torch.float64)
    side = torch.randint(0, 2, (count,), generator=generator).double()
    unit[torch.arange(count), axis] = side
    return corner[box] + unit * size[box]


def blob(generator: torch.Generator, count: int) -> Tensor:
    """Points on a bumpy sphere of radius about 1 m."""
    d = torch.randn((count, 3), generator=generator, dtype=torch.float64)
    d = d / d.norm(dim=-1, keepdim=True)
    radius = 1 + 0.25 * torch.sin(3 * d[:, 0] + 1) * torch.cos(2 * d[:, 1]) + 0.15 * torch.sin(5 * d[:, 2])
    return d * radius[:, None]


def corridor(generator: torch.Generator, count: int) -> Tensor:
    """Points on the walls, floor and ceiling of a corridor along x, 20 m long, 2 x 2.5 m."""
    u = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    along, across = 20 * u[:, 0] - 10, u[:, 1]
    wall = torch.randint(0, 4, (count,), generator=generator)
    y = torch.where(wall == 0, -1.0, torch.where(wall == 1, 1.0, 2 * across - 1))
    z = torch.where(wall == 2, 0.0, torch.where(wall == 3, 2.5, 2.5 * across))
    return torch.stack([along, y, z], -1)


def plane(generator: torch.Generator, count: int) -> Tensor:
    """Points on a disc of radius 5 m at z = 1."""
    u = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    angle, radius = 2 * math.pi * u[:, 0], 5 * u[:, 1].sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), torch.ones(count, dtype=torch.float64)], -1)


def small_pose(generator: torch.Generator, meters: float = 0.05, radians: float = 0.02) -> Rigid:
    scale = torch.tensor([meters] * 3 + [radians] * 3, dtype=torch.float64)
    return Rigid(*se3.exp(scale * torch.randn(6, generator=generator, dtype=torch.float64)))


def pair(
    scene, generator: torch.Generator, count: int, noise: float, pose: Rigid, *, same: bool = False
) -> tuple[Tensor, Tensor]:
    """(source, target) with target ~ pose(source): independent samples of the scene, or the same ones, plus noise."""
    target = scene(generator, count)
    source = target if same else scene(generator, count)

    def shaken(x: Tensor) -> Tensor:
        return x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    return shaken(pose.inverse().apply(source)), shaken(target)


def twist_error(found: Rigid, truth: Rigid) -> Tensor:
    """The twist (6,) with truth = found exp(twist)."""
    gap = found.inverse().compose(truth)
    return se3.log(gap.quat_wxyz, gap.translation)
