import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geom.errors import ShapeError
from geom.train import Constant, Cosine, Exponential, Milestones, Schedule, TrainConfig
from geom.train.schedules import from_plain, to_plain

EVERY = [Constant(), Cosine(warmup=3, floor=0.1), Exponential(warmup=1, floor=1e-3), Milestones(at=(0.25, 0.5))]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_it_rises_to_one_and_falls_to_the_end(schedule: Schedule) -> None:
    factors = [schedule.factor(step, 40) for step in range(40)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[schedule.warmup] == 1
    assert factors[: schedule.warmup] == [(k + 1) / (schedule.warmup + 1) for k in range(schedule.warmup)]
    assert all(b <= a for a, b in zip(factors[schedule.warmup :], factors[schedule.warmup + 1 :], strict=False))


@given(st.integers(1, 200))
def test_cosine_and_exponential_are_those_of_torch(steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    for schedule, make in (
        (Cosine(), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps)),
        (Exponential(floor=0.01), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.01 ** (1 / steps))),
    ):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        theirs = make(optimizer)
        for step in range(steps):
            assert math.isclose(schedule.factor(step, steps), theirs.get_last_lr()[0], rel_tol=1e-9, abs_tol=1e-12)
            optimizer.step()
            theirs.step()


def test_milestones_drop_where_they_stand() -> None:
    schedule = Milestones(at=(0.5, 0.75), drop=0.1)
    assert [round(schedule.factor(step, 8), 6) for step in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]


def test_warm_up_may_outlast_the_training() -> None:
    assert [Cosine(warmup=5).factor(step, 3) for step in range(3)] == [1 / 6, 2 / 6, 3 / 6]


def test_negative_warm_up_is_refused() -> None:
    with pytest.raises(ShapeError, match="warmup: expected at least 0 steps, got -1"):
        Cosine(warmup=-1)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda s: type(s).__name__)
def test_json_gives_it_back(schedule: Schedule) -> None:
    assert from_plain(to_plain(schedule)) == schedule
    config = TrainConfig(steps=5, schedule=schedule)
    assert TrainConfig.from_json(config.to_json()) == config


def test_a_schedule_of_your_own_is_written_by_its_path_and_not_read_back() -> None:
    @dataclass(frozen=True)
    class Cosine(Schedule):  # of the same name as one of ours
        def decay(self, progress: float) -> float:
            return 1 - progress

    config = TrainConfig(steps=5, schedule=Cosine())
    assert config.to_plain()["schedule"]["kind"].endswith("Cosine")
    with pytest.raises(ShapeError, match="schedule: expected one of 'constant', 'cosine'"):
        TrainConfig.from_json(config.to_json())
