"""The stepper: a rollout's bits, one step at a time."""

import pytest
import torch

from geom.errors import ShapeError
from geom.rods import Stepper, make_contacts, make_rod, rollout, start


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_steps_are_those_of_a_rollout(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    s = torch.linspace(0, 1, 9, dtype=dtype)
    x = torch.stack([s, 0.1 * torch.sin(3 * s), 0 * s], -1)
    rod = make_rod(x, EI=1e-4, GJ=1e-4, viscosity=0.01, drag=0.3)
    floor = make_contacts(planes=[[0, 0, -0.05, 0, 0, 1]], radius=0.01, stiffness=5.0, self_contact=True, dtype=dtype)
    state = start(rod, x.expand(*batch, 9, 3), clamped=[0, 1, -1], held=[1])
    path = state.position[..., None, [0, 1, 8], :] + state.position.new_zeros(20, 1, 1)
    path[..., 2, 0] -= 0.005 * torch.arange(20, dtype=dtype)
    settings = {"clamped": [0, 1, 8], "held": [1], "dt": 0.008, "contacts": floor}
    track = rollout(rod, state, targets=path, **settings)
    stepper = Stepper(rod, state, **settings)
    for t in range(20):
        assert torch.equal(stepper.step(path[..., t, :, :]), track.position[..., t, :, :])
    end = stepper.state
    for name in ("position", "velocity", "director", "strain", "strain_before"):
        assert torch.equal(getattr(end, name), getattr(track.end, name)), name
    again = rollout(rod, end, steps=1, **settings).position[..., 0, :, :]
    assert torch.equal(stepper.step(), again)
    assert torch.equal(end.position, track.end.position)  # a copy


def test_refused_targets_leave_the_state() -> None:
    s = torch.linspace(0, 1, 5)
    x = torch.stack([s, 0 * s, 0 * s], -1)
    rod = make_rod(x, EI=1e-4, GJ=1e-4)
    stepper = Stepper(rod, start(rod, x), clamped=[0, 4])
    good = stepper.step(x[[0, 4]]).clone()
    for wrong, said in (
        (x[[0, 4]] * 2, "no farther apart"),
        (x[[0, 4]] * torch.nan, "finite"),
        (x[:3], "targets: expected"),
        (x[[0, 4]].double(), "targets: expected"),
    ):
        with pytest.raises(ShapeError, match=said):
            stepper.step(wrong)
    assert torch.equal(stepper.state.position, good)
    with pytest.raises(ShapeError, match="state: expected"):
        Stepper(rod, start(make_rod(x[:4], EI=1e-4, GJ=1e-4), x[:4]))
