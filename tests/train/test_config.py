import json
from typing import Any

import pytest

from geom.errors import ShapeError
from geom.train import TrainConfig


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"batch": 2.5}, "batch: expected an integer of at least 1, got 2.5"),
        ({"accumulate": 0}, "accumulate: expected"),
        ({"checkpoint_every": 0}, "checkpoint_every: expected"),
        ({"validate_every": -1}, "validate_every: expected"),
        ({"workers": -1}, "workers: expected an integer of at least 0"),
        ({"rate": 0.0}, "rate: expected a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay: expected a number of at least 0"),
        ({"clip": 0.0}, "clip: expected a finite number above 0"),
        ({"average": 1.0}, "average: expected a decay in"),
        ({"precision": "half"}, "precision: expected one of 'full', 'bfloat16', 'float16', got str 'half'"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        TrainConfig(**{"steps": 1, **wrong})


def test_json_gives_it_back() -> None:
    config = TrainConfig(steps=3, batch=2, clip=1.5, precision="bfloat16", average=0.99, seed=8)
    assert TrainConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json()) == config.to_plain()
    assert TrainConfig.from_json('{"steps": 4}') == TrainConfig(steps=4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"steps": 3, "stops": 4}', '{"steps": 3, "schedule": "cosine"}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ShapeError, match="expected"):
        TrainConfig.from_json(text)
