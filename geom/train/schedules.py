"""Learning-rate schedules: what the base rate is multiplied by, as a function of the step alone, so with no state."""

import dataclasses
import math
from typing import Any

from geom.checks import check_choice
from geom.errors import ShapeError

__all__ = ["Constant", "Cosine", "Exponential", "Milestones", "Schedule"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate: rises linearly over `warmup` steps, then follows `decay`.

    Subclass it and define `decay`. `warmup` is a number of optimizer steps, 0 for none.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ShapeError(f"warmup: expected at least 0 steps, got {self.warmup}")

    def decay(self, progress: float) -> float:
        """The factor where `progress` of the steps after warm-up are done: 0 at the first, below 1 at the last."""
        raise NotImplementedError

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., steps - 1: (step + 1) / (warmup + 1) while it warms up, then `decay`.

        >>> [Cosine(warmup=1).factor(step, 5) for step in range(4)]
        [0.5, 1.0, 0.8535533905932737, 0.5]
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return self.decay((step - self.warmup) / max(steps - self.warmup, 1))


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """1 throughout."""

    def decay(self, progress: float) -> float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 to `floor` along half a cosine: floor + (1 - floor) (1 + cos(pi progress)) / 2."""

    floor: float = 0.0

    def decay(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclasses.dataclass(frozen=True)
class Exponential(Schedule):
    """From 1 to `floor`, by the same factor at each step: floor ** progress."""

    floor: float = 0.01

    def decay(self, progress: float) -> float:
        return self.floor**progress


@dataclasses.dataclass(frozen=True)
class Milestones(Schedule):
    """Multiplied by `drop` at each of the fractions `at` of the training."""

    at: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1

    def decay(self, progress: float) -> float:
        return self.drop ** sum(progress >= place for place in self.at)


_KINDS = {cls.__name__.lower(): cls for cls in (Constant, Cosine, Exponential, Milestones)}


def to_plain(schedule: Schedule) -> dict[str, Any]:
    """What JSON can hold."""
    kind = type(schedule).__name__.lower()
    if _KINDS.get(kind) is not type(schedule):  # a user's own: good to train with; written, never read back
        kind = f"{type(schedule).__module__}.{type(schedule).__qualname__}"
    return {"kind": kind, **dataclasses.asdict(schedule)}


def from_plain(plain: dict[str, Any]) -> Schedule:
    """The inverse of `to_plain`. Raises: ShapeError for an unknown kind, TypeError for unknown fields."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k != "kind"}
    check_choice(plain.get("kind"), _KINDS, "schedule")
    return _KINDS[plain["kind"]](**fields)
