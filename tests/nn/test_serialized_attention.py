"""Patches along an order against loops over clouds; coordinates that stay when a cloud is moved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geom.errors import ShapeError
from geom.lie import quaternion
from geom.nn.ragged_attention import attention
from geom.nn.serialized_attention import patches, principal_coordinates


def shuffled(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """An order of clouds, each shuffled, and their offsets."""
    generator, offsets = torch.Generator().manual_seed(seed), torch.tensor([0, *lengths]).cumsum(0)
    order = [start + torch.randperm(n, generator=generator) for start, n in zip(offsets, lengths, strict=False)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *order]), offsets


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 16), st.data())
def test_against_a_loop(lengths: list[int], size: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(0, size - 1))
    order, offsets = shuffled(lengths)
    cut = patches(order, size, shift=shift, offsets=offsets)
    found = [p.tolist() for p in torch.tensor_split(cut.index, cut.offsets[1:-1])] if len(cut.index) else []
    rows, home, place = [], {}, 0
    for start, n in zip(offsets.tolist(), lengths, strict=False):
        own = order[start : start + n].tolist()
        begin = -shift if n > size else 0
        while begin < n:  # [begin, begin + size) is the patch's own
            first = max(0, min(begin, n - size))
            rows.append(own[first : first + size])
            home |= {own[i]: place + i - first for i in range(max(begin, 0), min(begin + size, n))}
            place, begin = place + len(rows[-1]), begin + size
    assert found == rows
    assert cut.home.tolist() == [home[i] for i in range(len(order))]
    assert torch.equal(cut.index[cut.home], torch.arange(len(order)))
    assert cut.size == (size if rows and all(len(row) == size for row in rows) else None)


def test_attention_in_patches() -> None:
    order, offsets = shuffled([20, 5])
    cut = patches(order, 8, offsets=offsets)
    q, k, v = torch.randn(3, 2, 25, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = attention(q[:, cut.index], k[:, cut.index], v[:, cut.index], offsets=cut.offsets)[:, cut.home]
    a, b = order[:20], order[20:]
    for own, seen in ((a[:8], a[:8]), (a[8:16], a[8:16]), (a[16:], a[12:]), (b, b)):
        torch.testing.assert_close(got[:, own], attention(q[:, own], k[:, seen], v[:, seen]))


def test_principal_coordinates(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64).exp() * torch.tensor([3.0, 2, 1])
    offsets = torch.tensor([0, 120, 120, 300])
    q = principal_coordinates(x.to(dtype), offsets=offsets)
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-12}[dtype]
    for part in (slice(0, 120), slice(120, 300)):
        own = x[part] - x[part].mean(0)
        assert bool((q[part].mean(0).abs() < tolerance).all()) and bool((q[part].pow(3).sum(0) > 0).all())
        covariance = (q[part].mT @ q[part]).double()
        widths = torch.linalg.eigvalsh(own.mT @ own).flip(0)
        assert bool(((covariance - widths.diag()).abs() < tolerance * widths[0]).all())
        a = q[part].double()  # the same but for a rotation or reflection
        torch.testing.assert_close(a @ a.mT, own @ own.mT, rtol=0, atol=tolerance * float(widths[0]))
    motion = quaternion.to_matrix(quaternion.random(generator=generator, dtype=torch.float64))
    for sign in (1, -1):
        moved = principal_coordinates((sign * x @ motion.mT + 5).to(dtype), offsets=offsets)
        assert float((moved - q).abs().max()) < tolerance


def test_principal_coordinates_of_shapes_without_axes(dtype: torch.dtype) -> None:
    for x in (torch.zeros(4, 3), torch.eye(3), torch.tensor([[1.0, 0, 0], [-1, 0, 0]]), torch.zeros(0, 3)):
        q = principal_coordinates(x.to(dtype))
        assert q.shape == x.shape and q.dtype == dtype and bool(torch.isfinite(q).all())


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    order = torch.arange(5)
    for call, message in [
        (lambda: patches(order.float(), 2), "order: expected an int64 tensor"),
        (lambda: patches(order, 0), "size: expected an integer of at least 1, got 0"),
        (lambda: patches(order, 2, shift=2), "shift: expected an integer of at least 0 and below 2, got 2"),
        (lambda: patches(order, 2, offsets=torch.tensor([0, 4])), "offsets: expected to rise"),
        (lambda: patches(torch.tensor([0, 1, 1]), 2), "order: expected each of 3 items once"),
        (lambda: patches(torch.tensor([0, 1, 3]), 2), "order: expected each of 3 items once"),
        (lambda: patches(order.flip(0), 2, offsets=torch.tensor([0, 2, 5])), "cloud after cloud"),
        (lambda: principal_coordinates(torch.zeros(3, 2)), "points: expected"),
    ]:
        with pytest.raises(ShapeError, match=message):
            call()
