"""What a training is, apart from the module, the data and the loss: numbers that JSON can hold."""

import dataclasses
import json
from typing import Any, Literal, get_args

from geom.checks import check_choice, check_integer, check_positive, describe
from geom.errors import ShapeError
from geom.train.schedules import Constant, Schedule, from_plain, to_plain

__all__ = ["TrainConfig"]

Precision = Literal["full", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of one training.

    Args:
        steps: optimizer steps.
        batch: items in one pass of one process; a step sees batch x accumulate x processes items.
        accumulate: passes whose gradients are averaged before a step.
        rate: base learning rate, multiplied by `schedule`.
        schedule: its course over the steps.
        weight_decay: of `adamw`.
        clip: largest norm of the gradient over all parameters; None leaves it as it is.
        precision: "full" computes in the dtypes of the module; "bfloat16" and "float16" run the loss under
            `torch.autocast`, the latter with a scaled loss that skips steps whose gradient overflows.
        average: decay of the exponential moving average of the parameters (0.999, say), which is then what is
            validated and what the module holds in the end; None keeps none.
        seed: of the order of the data, and of every random number that the dataset and the loss draw.
        checkpoint_every: steps between checkpoints; there is always one in the end.
        validate_every: steps between validations; there is always one in the end.
        workers: processes that load data ahead, 0 to load between the steps. Changes no bit of the result.

    Raises: ShapeError for a number out of its range.

    >>> config = TrainConfig(steps=100, rate=3e-4)
    >>> TrainConfig.from_json(config.to_json()) == config
    True
    """

    steps: int
    batch: int = 1
    accumulate: int = 1
    rate: float = 1e-3
    schedule: Schedule = Constant()  # noqa: RUF009 (frozen)
    weight_decay: float = 0.0
    clip: float | None = None
    precision: Precision = "full"
    average: float | None = None
    seed: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 1000
    workers: int = 0

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "batch": 1, "accumulate": 1, "checkpoint_every": 1, "validate_every": 1, "workers": 0}
        for name, least in lowest.items():
            check_integer(getattr(self, name), name, least)
        check_positive(self.rate, "rate")
        if not self.weight_decay >= 0:
            raise ShapeError(f"weight_decay: expected a number of at least 0, got {describe(self.weight_decay)}")
        if self.clip is not None:
            check_positive(self.clip, "clip")
        if self.average is not None and not 0 <= self.average < 1:
            raise ShapeError(f"average: expected a decay in [0, 1), got {describe(self.average)}")
        check_choice(self.precision, get_args(Precision), "precision")

    def to_plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.loads(json.dumps({**fields, "schedule": to_plain(self.schedule)}))

    def to_json(self) -> str:
        """One JSON object, a field a line."""
        return json.dumps(self.to_plain(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """The inverse of `to_json`; fields left out take their defaults. Raises: ShapeError."""
        try:
            plain = json.loads(text)
            if "schedule" in plain:
                plain["schedule"] = from_plain(plain["schedule"])
            return cls(**plain)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ShapeError(f"config: expected a JSON object of TrainConfig's fields, got {error}") from error
