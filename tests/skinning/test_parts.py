"""Parts, rigidity, joints and skeletons from motion."""

import pytest
import torch
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import so3
from geom.skinning.parts import Parts, discover_parts

f64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def tree(frames: int = 20, each: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A body with two arms and a forearm: track, labels, joints and parents. Bones are clouds along a stick."""
    parent = [-1, 0, 0, 1]
    joint = torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0], [2, 0, 0.1]], dtype=f64)
    centre = torch.tensor([[0.0, 0, 0], [1.5, 0, 0.05], [-1.5, 0, 0], [2.5, 0, 0.1]], dtype=f64)
    labels = torch.arange(4).repeat_interleave(each)
    size = torch.tensor([1.9, 0.9, 0.9, 0.9], dtype=f64)[labels][:, None] * torch.tensor([0.5, 0.1, 0.1], dtype=f64)
    rest = centre[labels] + size * (
        2 * torch.rand(4 * each, 3, generator=torch.Generator().manual_seed(3)).double() - 1
    )
    time = torch.linspace(0, 3, frames, dtype=f64)[:, None]
    R, t = [], []
    for j, p in enumerate(parent):
        turn = so3.exp(0.8 * (time * (1 + 0.5 * random(1, 3, seed=j))).sin())  # none in the first frame
        offset = joint[j] - turn @ joint[j]
        R.append(turn if p < 0 else R[p] @ turn)
        t.append(offset if p < 0 else (R[p] @ offset[..., None])[..., 0] + t[p])
    A, b = torch.stack(R, 1)[:, labels], torch.stack(t, 1)[:, labels]
    return (A @ rest[..., None])[..., 0] + b, labels, joint, torch.tensor(parent)


def matched(found: Parts, labels: Tensor) -> list[int]:
    """The found part of each true one; asserts that they are the same sets."""
    pairs = {(int(a), int(b)) for a, b in zip(labels, found.labels, strict=True)}
    assert len(pairs) == len(labels.unique()) == found.motions.shape[1]
    return [b for _, b in sorted(pairs)]


@pytest.mark.parametrize("parts", [None, 4])
def test_a_tree_of_parts_is_found(dtype: torch.dtype, parts: int | None) -> None:
    track, labels, joint, parent = tree()
    found = discover_parts(track.to(dtype), parts=parts)
    order = matched(found, labels)
    assert found.joints.dtype == found.rigidity.dtype == found.motions.dtype == dtype
    assert found.rigidity.min() > 0.999
    up = [-1 if p < 0 else order[p] for p in parent.tolist()]
    root = found.parent.tolist().index(-1)
    if root == order[0]:
        assert [int(found.parent[order[j]]) for j in range(4)] == up
    undirected = {frozenset((j, int(p))) for j, p in enumerate(found.parent) if p >= 0}
    assert undirected == {frozenset((order[j], p)) for j, p in enumerate(up) if p >= 0}
    for j, p in enumerate(found.parent.tolist()):
        if p >= 0:
            a, b = order.index(j), order.index(p)
            true = joint[a] if parent[a] == b else joint[b]
            assert (found.joints[j] - true).abs().max() < 2e-3
    moved = (found.motions[:, found.labels, :, :3] @ track[0].to(dtype)[..., None])[..., 0]
    assert (moved + found.motions[:, found.labels, :, 3] - track.to(dtype)).abs().max() < 1e-5


def test_rigidity_is_a_half_at_the_tolerance() -> None:
    track, labels, *_ = tree()
    wobble = torch.zeros_like(track)
    wobble[:, 5, 1] = 0.05 * torch.tensor([1.0, -1] * 10)
    wobble[0] = 0
    found = discover_parts(track + wobble, parts=4, tolerance=0.05)
    matched(found, labels)
    assert abs(float(found.rigidity[5]) - 0.5) < 0.05
    rest = torch.cat([found.rigidity[:5], found.rigidity[6:]])
    assert rest.min() > 0.95
    assert float(discover_parts(track + wobble, parts=4, tolerance=0.5).rigidity[5]) > 0.95


def test_tolerance_says_how_many() -> None:
    track, *_ = tree()
    assert len(discover_parts(track, tolerance=100.0).parent) == 1
    assert len(discover_parts(track, tolerance=0.02).parent) >= 4
    assert len(discover_parts(track, parts=2).parent) == 2


def test_many_tracks_degenerate_stay_finite() -> None:
    cases = (
        torch.zeros(3, 20, 3),
        random(1, 20, 3),
        random(4, 1, 3),
        random(4, 2, 3),
        random(5, 30, 3),
        random(5, 30, 3) * torch.tensor([1.0, 0, 0]),
        random(20, 3).expand(4, 20, 3),
    )
    for track in cases:
        found = discover_parts(track)
        n, p = track.shape[1], len(found.parent)
        assert found.labels.shape == (n,) and int(found.labels.max()) < p and int((found.parent < 0).sum()) == 1
        for x in (found.rigidity, found.motions, found.joints):
            assert bool(x.isfinite().all())


def test_the_same_bits_again() -> None:
    track, *_ = tree()
    a, b = discover_parts(track), discover_parts(track)
    assert torch.equal(a.labels, b.labels) and torch.equal(a.motions, b.motions) and torch.equal(a.joints, b.joints)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named() -> None:
    track = random(4, 9, 3)
    gap = track.clone()
    gap[2, 3] = torch.nan
    for call, word in (
        (lambda: discover_parts(gap), "track"),
        (lambda: discover_parts(track[0]), "track"),
        (lambda: discover_parts(track, parts=0), "parts"),
        (lambda: discover_parts(track, tolerance=-1.0), "tolerance"),
    ):
        with pytest.raises(ShapeError, match=word):
            call()
