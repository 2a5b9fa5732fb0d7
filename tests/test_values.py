"""What `@value` gives a class: a pytree that moves, indexes, saves and loads as one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor
from torch.utils import _pytree as pytree

from geom.errors import FileFormatError, ShapeError
from geom.lie import Rigid
from geom.values import Fit, Value, replace, value


@value
class Ball(Value):
    """A class with every kind of field."""

    centre: Float[Tensor, "*b 3"]
    radius: Float[Tensor, "*b"]
    label: Int64[Tensor, "*b"] | None = None
    palette: Float[Tensor, "k 3"] | None = None
    pose: Rigid | None = None
    name: str = "ball"
    sizes: tuple[tuple[int, int], ...] = ()
    kind: Literal["soft", "hard"] = "soft"
    exact: bool = False


@value
class Bare:
    """A value that inherits nothing."""

    x: Float[Tensor, "*b 2"]


def ball(*batch: int) -> Ball:
    pose = Rigid.identity(*batch)
    label = torch.arange(torch.Size(batch).numel()).reshape(batch)
    return Ball(torch.rand(*batch, 3), torch.rand(batch), label, torch.rand(4, 3), pose, "b", ((1, 2), (3, 4)), "hard")


def same(a: Any, b: Any) -> bool:
    leaves, spec = pytree.tree_flatten(a)
    others, other = pytree.tree_flatten(b)
    return spec == other and all(map(torch.equal, leaves, others))


# --- pytree ----------------------------------------------------------------------------------------------------------


def test_flattens_to_tensors_and_back() -> None:
    x = ball(5)
    leaves, spec = pytree.tree_flatten(x)
    assert all(isinstance(leaf, Tensor) for leaf in leaves) and len(leaves) == 6
    again = pytree.tree_unflatten(leaves, spec)
    assert same(again, x) and (again.name, again.sizes, again.exact) == ("b", ((1, 2), (3, 4)), False)


def test_structure_tells_static_fields_and_missing_ones_apart() -> None:
    spec = pytree.tree_structure
    assert spec(ball(5)) == spec(ball(6))
    assert spec(ball(5)) != spec(replace(ball(5), name="other"))
    assert spec(ball(5)) != spec(replace(ball(5), label=None))


def test_structure_survives_placeholders() -> None:
    """Transforms fill a value with ints or objects and flatten it again: what is a leaf must not depend on content."""
    leaves, spec = pytree.tree_flatten(ball(5))
    for placeholder in (0, object(), "x"):
        assert pytree.tree_structure(pytree.tree_unflatten([placeholder] * len(leaves), spec)) == spec


def test_functorch_maps_over_a_value() -> None:
    x = replace(ball(5), palette=None)
    torch.testing.assert_close(torch.func.vmap(lambda b: b.centre * b.radius)(x), x.centre * x.radius[:, None])
    moved = torch.func.vmap(lambda b: replace(b, centre=2 * b.centre))(x)
    assert isinstance(moved, Ball) and torch.equal(moved.centre, 2 * x.centre) and moved.name == "b"
    one = Ball(torch.rand(3), torch.rand(()))
    gradient = torch.func.grad(lambda b: b.centre.sum() * b.radius)(one)
    assert torch.equal(gradient.radius, one.centre.sum())


def test_gradients_reach_every_leaf() -> None:
    x = Ball(torch.rand(3, requires_grad=True), torch.rand((), requires_grad=True))
    moved = x.to(torch.float64)
    (moved.centre.sum() * moved.radius).backward()
    assert x.centre.grad is not None and x.radius.grad is not None


# --- moving ----------------------------------------------------------------------------------------------------------


def test_to_changes_floats_and_keeps_integers(dtype: torch.dtype) -> None:
    x = ball(5).to(dtype)
    assert x.centre.dtype == x.pose.quat_wxyz.dtype == dtype and x.label.dtype == torch.int64  # type: ignore[union-attr]
    for moved in (x.to("meta"), x.to(device="meta"), x.to(torch.rand(1, device="meta")), x.to("meta", torch.float64)):
        assert {leaf.device.type for leaf in pytree.tree_leaves(moved)} == {"meta"}
    assert x.to("meta", torch.float64).radius.dtype == torch.float64
    assert x.name == x.to("meta").name


def test_to_of_the_same_copies_nothing() -> None:
    x = ball(5)
    assert x.to(torch.float32).centre is x.centre and x.to("cpu").label is x.label


@pytest.mark.gpu
def test_to_the_gpu_and_back() -> None:
    x = ball(5)
    assert x.to("cuda").pose.quat_wxyz.device.type == "cuda" and same(x.to("cuda").to("cpu"), x)  # type: ignore[union-attr]


# --- indexing --------------------------------------------------------------------------------------------------------


def test_index_picks_from_the_batch_of_every_field() -> None:
    x = ball(5, 6)
    one = x[2, 3]
    assert one.centre.shape == (3,) and one.radius.shape == () and one.label.item() == 15  # type: ignore[union-attr]
    assert one.palette.shape == (4, 3) and one.pose.quat_wxyz.shape == (4,) and one.name == "b"  # type: ignore[union-attr]
    assert torch.equal(x[..., -1].centre, x.centre[:, -1]) and x[None].radius.shape == (1, 5, 6)
    mask = torch.rand(5, 6) > 0.5
    assert torch.equal(x[mask].centre, x.centre[mask])
    assert torch.equal(x[torch.tensor([4, 0]), 1:3].radius, x.radius[[4, 0], 1:3])


def test_index_never_reaches_a_fields_own_dimensions() -> None:
    x = ball(5)
    with pytest.raises(IndexError):
        x[0, 0]
    with pytest.raises(IndexError):
        x[5]
    with pytest.raises(ShapeError, match="Ball: expected a batch dimension to index"):
        x[0][0]
    assert len(list(x)) == 5  # type: ignore[call-overload]


def test_a_class_without_a_batch_has_nothing_to_index() -> None:
    @value
    class Cloud(Value):
        x: Float[Tensor, "n 3"]

    with pytest.raises(ShapeError, match="Cloud: expected a batch dimension to index, got a class without one"):
        Cloud(torch.rand(5, 3))[0]


def test_fit_indexes_its_value_and_covariance() -> None:
    fit = Fit(Rigid.identity(5), torch.rand(5), torch.rand(5, 6, 6), torch.ones(5, dtype=torch.bool), torch.arange(5))
    one = fit[3]
    assert one.value.translation.shape == (3,) and one.covariance.shape == (6, 6) and int(one.iterations) == 3
    assert (
        fit[1:3].cost.shape == (2,)
        and Fit(fit.value, fit.cost, None, fit.converged, fit.iterations)[0].covariance is None
    )


# --- frozen, replaced, not inheriting ---------------------------------------------------------------------------------


def test_is_frozen_and_compared_by_identity() -> None:
    x = ball(5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.name = "other"  # type: ignore[misc]
    assert x == x and x != replace(x) and {x: 1}[x] == 1


def test_replace_checks_again() -> None:
    from geom.meshes import Mesh

    mesh = Mesh(torch.rand(3, 3), torch.tensor([[0, 1, 2]]))
    with pytest.raises(ShapeError, match="expected indices in"):
        replace(mesh, faces=torch.tensor([[0, 1, 3]]))


def test_a_class_need_not_inherit(tmp_path: Path) -> None:
    x: Any = Bare(torch.rand(5, 2))
    assert x[1].x.shape == (2,) and x.to(torch.float64).x.dtype == torch.float64
    x.save(tmp_path / "x.safetensors")
    assert same(Bare.load(tmp_path / "x.safetensors"), x)  # type: ignore[attr-defined]


# --- save and load ---------------------------------------------------------------------------------------------------


def test_saves_and_loads_every_field(tmp_path: Path, dtype: torch.dtype) -> None:
    x = ball(5).to(dtype)
    x.save(tmp_path / "x.safetensors")
    again = Ball.load(tmp_path / "x.safetensors")
    assert same(again, x) and again.sizes == ((1, 2), (3, 4)) and again.centre.dtype == dtype
    plain = Ball(torch.rand(3), torch.rand(()))
    plain.save(str(tmp_path / "x.safetensors"))
    assert same(Ball.load(str(tmp_path / "x.safetensors")), plain)


def test_saves_views_shared_and_leaf_tensors(tmp_path: Path) -> None:
    whole = torch.rand(4, 3)
    x = Ball(whole.T[:3].T, whole[:, 0], palette=whole.requires_grad_())
    x.save(tmp_path / "x.safetensors")
    again = Ball.load(tmp_path / "x.safetensors")
    assert same(again, x) and not again.palette.requires_grad  # type: ignore[union-attr]


def test_nested_fits(tmp_path: Path) -> None:
    flags = torch.rand(()), None, torch.tensor(True), torch.tensor(3)
    fit = Fit(Fit(Rigid.identity(), *flags), *flags)
    fit.save(tmp_path / "fit.safetensors")
    again = Fit.load(tmp_path / "fit.safetensors")
    assert same(again, fit) and isinstance(again.value.value, Rigid) and again.covariance is None


def test_a_nested_class_is_found_in_its_room(tmp_path: Path) -> None:
    """A fresh interpreter that never named `geom.lie` loads a Fit of a Rigid."""
    fit = Fit(Rigid.identity(), torch.rand(()), None, torch.tensor(True), torch.tensor(3))
    fit.save(tmp_path / "fit.safetensors")
    script = f"from geom.values import Fit; print(type(Fit.load({str(tmp_path / 'fit.safetensors')!r}).value).__name__)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "Rigid\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = ball(2)
    x.save(tmp_path / "x.safetensors")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        ball(3).save(tmp_path / "x.safetensors")
    monkeypatch.undo()
    assert same(Ball.load(tmp_path / "x.safetensors"), x) and os.listdir(tmp_path) == ["x.safetensors"]


def header(found: Any) -> dict[str, str]:
    return {"geom": found if isinstance(found, str) else json.dumps(found)}


RIGID = {"quat_wxyz": torch.tensor([1.0, 0, 0, 0]), "translation": torch.zeros(3)}
BROKEN = {
    "no metadata": (RIGID, None, "KeyError"),
    "not JSON": (RIGID, header("{"), "JSONDecodeError"),
    "not a mapping": (RIGID, header([1, 2]), "TypeError"),
    "no fields": (RIGID, header({"value": "geom.lie.Rigid"}), "KeyError"),
    "another value": (RIGID, header({"value": "geom.meshes.Mesh", "fields": {}}), "got a saved geom.meshes.Mesh"),
    "a tensor short": ({"translation": torch.zeros(3)}, header({"value": "geom.lie.Rigid", "fields": {}}), "quat_wxyz"),
    "a tensor of another shape": (
        {**RIGID, "quat_wxyz": torch.zeros(3)},
        header({"value": "geom.lie.Rigid", "fields": {}}),
        r"got quat_wxyz, a float32 tensor of shape \(3,\)",
    ),
    "batches that differ": (
        {"quat_wxyz": torch.zeros(2, 4), "translation": torch.zeros(3, 3)},
        header({"value": "geom.lie.Rigid", "fields": {}}),
        r"got translation, a float32 tensor of shape \(3, 3\)",
    ),
    "an integer tensor": (
        {**RIGID, "translation": torch.zeros(3, dtype=torch.int64)},
        header({"value": "geom.lie.Rigid", "fields": {}}),
        "got translation, a int64 tensor",
    ),
    "fields that are a list": ({}, header({"value": "geom.lie.Rigid", "fields": []}), "TypeError"),
}


@pytest.mark.parametrize(("tensors", "metadata", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_that_is_not_the_value_is_refused(tmp_path: Path, tensors, metadata, said: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(FileFormatError, match=r"x.safetensors: expected a saved geom.lie.Rigid, .*" + said):
        Rigid.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("nested", ["geom.nowhere.Rigid", "geom.lie.Nothing", "os.system", "geom", ""])
def test_a_file_cannot_choose_what_is_imported(tmp_path: Path, nested: str) -> None:
    fields = {"value": {"value": nested, "fields": {}}}
    save_file(
        {"cost": torch.zeros(())}, tmp_path / "x.safetensors", header({"value": "geom.values.Fit", "fields": fields})
    )
    with pytest.raises(FileFormatError, match=r"expected a saved geom\.values\.Fit"):
        Fit.load(tmp_path / "x.safetensors")


def test_any_corruption_is_refused_or_harmless(tmp_path: Path) -> None:
    """Each truncation, and each byte of the header changed, raises FileFormatError or loads a value of this class."""
    Rigid.identity(2).save(tmp_path / "good.safetensors")
    good, bad = (tmp_path / "good.safetensors").read_bytes(), tmp_path / "bad.safetensors"
    cases = [good[:n] for n in range(0, len(good), 7)]
    cases += [good[:i] + bytes([good[i] ^ 0x5A]) + good[i + 1 :] for i in range(0, len(good) - 56, 3)]
    refused = 0
    for case in cases:
        bad.write_bytes(case)
        try:
            x = Rigid.load(bad)
        except FileFormatError as error:
            refused += error.path == str(bad)
        else:
            assert x.quat_wxyz.shape[-1] == 4 and x.quat_wxyz.shape[:-1] == x.translation.shape[:-1]
    assert refused > 0.9 * len(cases)


def test_values_own_checks_speak_through_the_loader(tmp_path: Path) -> None:
    from geom.meshes import Mesh

    tensors = {"vertices": torch.rand(3, 3), "faces": torch.tensor([[0, 1, 9]])}
    meta = header({"value": "geom.meshes.Mesh", "fields": {"normals": None, "colors": None}})
    save_file(tensors, tmp_path / "mesh.safetensors", meta)
    with pytest.raises(FileFormatError, match=r"expected indices in \[0, 3\)"):
        Mesh.load(tmp_path / "mesh.safetensors")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Rigid.load(tmp_path / "absent.safetensors")
    with pytest.raises(IsADirectoryError):
        Rigid.load(tmp_path)


# --- tuples of values ------------------------------------------------------------------------------------------------


@value
class Bag(Value):
    """Several values, each of its own size."""

    balls: tuple[Ball, ...]
    spare: tuple[Rigid, ...] = ()
    sizes: tuple[int, ...] = ()


def test_a_tuple_of_values_moves_indexes_and_saves(tmp_path: Path) -> None:
    bag = Bag((ball(5), replace(ball(5), palette=torch.rand(9, 3), pose=None)), sizes=(3, 4))
    assert len(pytree.tree_leaves(bag)) == 6 + 4
    assert [b.radius.dtype for b in bag.to(torch.float64).balls] == [torch.float64] * 2
    third = bag[2]
    assert [b.centre.shape for b in third.balls] == [(3,), (3,)] and third.sizes == (3, 4)
    bag.save(tmp_path / "bag")
    again = Bag.load(tmp_path / "bag")
    assert same(again, bag) and again.sizes == (3, 4) and again.spare == () and again.balls[1].pose is None
    Bag(()).save(tmp_path / "bag")
    assert Bag.load(tmp_path / "bag").balls == ()


def test_a_tuple_of_values_is_checked_on_load(tmp_path: Path) -> None:
    for wrong in ([1], [{"value": "geom.lie.Nothing", "fields": {}}], [{}]):
        meta = {"value": f"{__name__}.Bag", "fields": {"balls": wrong, "spare": [], "sizes": []}}
        save_file({}, tmp_path / "bag", metadata={"geom": json.dumps(meta)})
        with pytest.raises(FileFormatError):
            Bag.load(tmp_path / "bag")
