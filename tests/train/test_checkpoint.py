import contextlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from geom.errors import FileFormatError, ShapeError
from geom.lie import Rigid
from geom.train import load_checkpoint, load_weights, save_checkpoint

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.text(max_size=4) | st.integers(-5, 5)
STATES = st.recursive(
    PLAIN | st.integers(0, 3).map(lambda n: torch.arange(float(n))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@given(st.dictionaries(st.text(max_size=4), STATES, max_size=4))
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_checkpoint(path, state)
    assert equal(load_checkpoint(path), state)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad, torch.optim.RMSprop])
def test_optimizers_come_back(tmp_path: Path, make: Any) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = make(module.parameters(), lr=0.1)
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "a", {"optimizer": optimizer.state_dict()})
    assert equal(load_checkpoint(tmp_path / "a")["optimizer"], optimizer.state_dict())


def test_any_dtype_views_and_shared_memory(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    floats = [x.to(d) for d in (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)]
    state = {"x": x, "view": x.T, "same": x, "none": torch.zeros(0, 3), "scalar": torch.tensor(3), "dtypes": floats}
    save_checkpoint(tmp_path / "a", OrderedDict(state))
    assert equal(load_checkpoint(tmp_path / "a"), state)


def test_names_that_read_alike_stay_apart(tmp_path: Path) -> None:
    state = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1), 0: torch.ones(2), "0": torch.ones(3)}, "": torch.ones(4)}
    state["__metadata__"] = torch.ones(5)
    save_checkpoint(tmp_path / "a", state)
    assert equal(load_checkpoint(tmp_path / "a"), state)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", {"module": {"layer.weight": torch.ones(2)}, "step": 3})
    with safe_open(str(tmp_path / "a"), framework="pt") as file:
        assert list(file.keys()) == ["module.layer.weight"]


@pytest.mark.parametrize("thing", [{1, 2}, object(), Rigid.identity(), torch.float32])
def test_other_things_are_refused_and_the_old_file_stays(tmp_path: Path, thing: object) -> None:
    save_checkpoint(tmp_path / "a", {"step": 1})
    with pytest.raises(ShapeError, match=r"x\.1: expected tensors and plain data in a checkpoint, got"):
        save_checkpoint(tmp_path / "a", {"x": [0, thing]})
    assert load_checkpoint(tmp_path / "a") == {"step": 1}


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FileFormatError, match="expected a saved checkpoint"):
        load_checkpoint(tmp_path / "text")
    Rigid.identity().save(tmp_path / "value")
    with pytest.raises(FileFormatError, match="expected a saved checkpoint"):
        load_checkpoint(tmp_path / "value")
    save_checkpoint(tmp_path / "a", {"step": 1})
    with pytest.raises(FileFormatError, match="expected a checkpoint of a training, got one of step"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "a")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, place: int, byte: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    save_checkpoint(path, {"a": {"b": torch.ones(2)}, "c": [1, (2.0, None)], 3: "d"})
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    with contextlib.suppress(FileFormatError):
        load_checkpoint(path)


def test_averaged_weights_go_into_shared_ones(tmp_path: Path) -> None:
    def tied() -> torch.nn.Sequential:
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    module, other = tied(), tied()
    average = {name: torch.full_like(p, 7.0) for name, p in module.named_parameters()}
    save_checkpoint(tmp_path / "a", {"module": module.state_dict(), "average": average})
    load_weights(other, tmp_path / "a")
    assert all(bool((p == 7).all()) for p in other.parameters()) and other[1].weight is other[0].weight
