"""`Bodies` that attract each other, planets drawn and moved; `BodyNetwork`, a `GATr` that says where they will be."""

import math
import os

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import Self

from geom.checks import check_field, check_integer, check_positive, check_shape
from geom.clifford.attention import AttentionPlan
from geom.clifford.embedding import embed_plane, embed_point, embed_translation, extract_direction, extract_plane
from geom.clifford.gatr import GATr, GATrPlan
from geom.errors import FileFormatError, ShapeError
from geom.lie import quaternion
from geom.train import load_checkpoint, save_checkpoint
from geom.values import Value, replace, value

__all__ = ["Bodies", "BodyNetwork", "draw_planets", "move_bodies"]

DURATION = 0.1
_FARTHEST = 2.0  # a planet that is moved by more has met another one
_SPARE = 1.1


@value
class Bodies(Value):
    """Points with mass in motion, in units where the constant of gravitation is 1.

    Fields: `mass` (..., n), greater than 0; `position` and `velocity` (..., n, 3).
    Raises: ShapeError.

    Guarantees: differentiable; deterministic; exact
    """

    mass: Float[Tensor, "*b n"]
    position: Float[Tensor, "*b n 3"]
    velocity: Float[Tensor, "*b n 3"]

    def __post_init__(self) -> None:
        shape = (*check_shape(self.mass, (), "mass").shape, 3)
        check_field(self.position, shape, "position")
        check_field(self.velocity, shape, "velocity")


def move_bodies(bodies: Bodies, *, duration: float = DURATION, steps: int = 100) -> Bodies:
    """Let bodies attract each other for a while, by semi-implicit Euler steps: velocities, then positions by these.

        v_i <- v_i + h sum_j m_j (x_j - x_i) / |x_j - x_i|^3        x_i <- x_i + h v_i        h = duration / steps

    A distance below 1e-9 counts as 1. Bodies that meet within a step kick each other out, as they would not in truth.

    Args: duration; steps. Returns: where they are then, and how fast. Raises: ShapeError.

    >>> place, way = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.0, 0, 0], [0, 1, 0]])
    >>> [round(x, 3) for x in move_bodies(Bodies(torch.tensor([1.0, 1e-9]), place, way)).position[1].tolist()]
    [0.995, 0.1, 0.0]

    Guarantees: differentiable (but where two meet); deterministic; first order in h
    """
    h = check_positive(duration, "duration") / check_integer(steps, "steps")
    x, v = bodies.position, bodies.velocity
    for _ in range(steps):
        between = x[..., None, :, :] - x[..., :, None, :]
        square = between.square().sum(-1)
        cube = torch.where(square < 1e-18, torch.ones_like(square), square) ** 1.5
        v = v + h * ((bodies.mass[..., None, :] / cube)[..., None] * between).sum(-2)
        x = x + h * v
    return replace(bodies, position=x, velocity=v)


def draw_planets(
    count: int,
    planets: int = 3,
    *,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    generator: torch.Generator | None = None,
) -> tuple[Bodies, Bodies]:
    """Planetary systems, and where they are 0.1 later, by 100 steps of `move_bodies`: the data of Brehmer et al., 2023.

    A star of mass 1 to 10, log-uniform, at rest, and planets of 0.01 to 0.1, uniform in an annulus of radii 0.1 to 1,
    on circles about it, either way round, with N(0, 0.01^2) added to each coordinate of their velocities. The bodies
    are in random order, the plane is turned at random, and all is shifted by N(0, 20^2) along each axis. Systems in
    which a body moves by more than 2 are left out.

    Args:
        count: of systems.
        planets: in each.
        shift: added to all positions; it changes nothing else.
        generator: draws them.

    Returns: what was, and what is then: (count,) systems of n = planets + 1 bodies, float64. Raises: ShapeError.

    >>> start, end = draw_planets(10, generator=torch.Generator().manual_seed(0))
    >>> start.mass.shape, bool((end.position - start.position).norm(dim=-1).max() <= 2)
    (torch.Size([10, 4]), True)

    Guarantees: not differentiable; deterministic under a seed; exact
    """
    check_integer(count, "count", 0)
    n = math.ceil(_SPARE * count)
    shape = (n, check_integer(planets, "planets"))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    star, mass = 10 ** uniform(n, 1), 10 ** (uniform(*shape) - 2)
    radius = (0.01 + 0.99 * uniform(*shape)).sqrt()  # uniform in area
    angle = 2 * math.pi * uniform(*shape)
    outward = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
    along = torch.stack([-angle.sin(), angle.cos(), torch.zeros_like(angle)], -1)
    sense = torch.where(uniform(*shape) < 0.5, -1.0, 1.0)
    position = radius[..., None] * outward
    velocity = (sense * (star / radius).sqrt())[..., None] * along + 0.01 * normal(*shape, 3)

    rest = torch.zeros(n, 1, 3, dtype=torch.float64)
    order = uniform(n, planets + 1).argsort(-1)
    turn = quaternion.random(n, 1, dtype=torch.float64, generator=generator)
    place = 20 * normal(n, 1, 3) + torch.tensor(shift, dtype=torch.float64)

    def shuffle(planar: Tensor) -> Tensor:
        return quaternion.rotate(turn, torch.cat([rest, planar], 1).take_along_dim(order[..., None], 1))

    flat = Bodies(torch.cat([star, mass], 1).take_along_dim(order, 1), shuffle(position), shuffle(velocity))
    after = move_bodies(flat)
    whole = (after.position - flat.position).norm(dim=-1).amax(-1) <= _FARTHEST
    start, end = (replace(x, position=x.position + place)[whole][:count] for x in (flat, after))
    if len(start.mass) < count:  # a few in a thousand are left out, and a tenth more are drawn
        raise ShapeError(f"planets: expected so few that most systems last, got {planets}")
    return start, end


class BodyNetwork(nn.Module):
    """Where bodies that attract each other will be after a time T, at once: their course if they did not, and a `GATr`.

        x' = x + T v + a r + b w + n + (p - e x)        (n, p, e, a, b) = net(mass, r, w)

    r and w are the place, and the way in T, of each body relative to the mean over all bodies weighted by mass to a
    learned power, 2 at first. The network reads points, translations by w, planes normal to r and w, and logarithms of
    lengths and masses; it gives planes with normal n, trivectors with weight e and place p, and numbers a and b. It
    moves as the bodies do, under proper motions, and is the same for bodies in any order and any steady motion of all.

    Args:
        duration: T, in the unit of time of the velocities.
        length: what the network takes as its unit of length.
        channels, scalars, blocks, heads: of `GATrPlan`.
        generator: draws the first weights.

    The call: `Bodies` of any batch shape. The result: positions (..., n, 3). Raises: ShapeError.

    >>> start, _ = draw_planets(10)
    >>> BodyNetwork()(start.to(torch.float32)).shape
    torch.Size([10, 4, 3])

    Guarantees: differentiable; deterministic; 2e-15 f64, 1e-6 f32 of how far they are apart or from the origin
    """

    def __init__(
        self,
        duration: float = DURATION,
        *,
        length: float = 1 / 3,
        channels: int = 8,
        scalars: int = 32,
        blocks: int = 3,
        heads: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape = {"channels": channels, "scalars": scalars, "blocks": blocks, "heads": heads}
        self.duration, self.length = check_positive(duration, "duration"), check_positive(length, "length")
        plan = GATrPlan(channels=channels, scalars=scalars, blocks=blocks, attention=AttentionPlan(heads=heads))
        self.net = GATr(5, 1, 6, 2, plan=plan, generator=generator)
        self.power = nn.Parameter(torch.tensor(2.0))
        self.gain = nn.Parameter(torch.tensor([0.1, 0.1, 0.03, 0.03]))  # so that it begins with hardly any attraction

    def forward(self, bodies: Bodies) -> Float[Tensor, "*b n 3"]:
        mass, step = bodies.mass, self.duration * bodies.velocity
        x = bodies.position - bodies.position[..., :1, :]  # small, however far away they all are
        heaviness = mass.log()[..., None]
        share = (self.power * heaviness).softmax(-2)
        centre, drift, centre_mass = ((share * y).sum(-2, keepdim=True) for y in (x, step, mass[..., None]))
        r, w = (x - centre) / self.length, (step - drift) / self.length
        (along, far), (ahead, fast) = _unit(r), _unit(w)
        numbers = [
            heaviness,
            centre_mass.log().expand_as(share),
            far,
            fast,
            (along * ahead).sum(-1, keepdim=True),
            share,
        ]
        planes = (embed_plane(y, r) for y in (w, along, ahead))
        inputs = torch.stack([embed_point(r), embed_translation(w), *planes], -2)
        found, factors = self.net(inputs, torch.cat(numbers, -1))
        found = found[..., 0, :]
        offset = extract_direction(found) - found[..., 14:15] * r  # of a mean with weights of any sum
        ways = (factors[..., :1] * r, factors[..., 1:] * w, extract_plane(found)[0], offset)
        change = sum(gain * way for gain, way in zip(self.gain.unbind(), ways, strict=True))
        return bodies.position + (step + self.length * change)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and shape as safetensors; a failed write leaves the old file."""
        shape = {**self.shape, "duration": self.duration, "length": self.length}
        save_checkpoint(path, {"network": shape, "module": self.state_dict()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, on the CPU. Raises: FileFormatError if it is something else; OSError as `open`."""
        state = load_checkpoint(path)
        try:
            network = cls(**state["network"])
            network.load_state_dict(state["module"])
        except (KeyError, TypeError, RuntimeError, ShapeError) as error:
            raise FileFormatError(path, f"expected a saved network, got {error!r}") from error
        return network


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 (shorter where there is hardly any) and the logarithms (..., 1) of lengths."""
    square = vector.square().sum(-1, keepdim=True) + 0.01**2
    return vector * square.rsqrt(), square.log() / 2
