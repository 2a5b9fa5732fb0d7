"""What rows have in common: errors, first results that stand for all, work as often as told, times by threads."""

from typing import Any

import pytest
import torch

from benchmarks.harness import Plan, least, measure
from benchmarks.rows import Operation, Row, by_threads, case_of, contenders, draw, error_of, untimed


def test_errors_are_of_the_greatest_number_of_each_tensor_or_of_all() -> None:
    right = [torch.ones(3, 2), torch.full((4,), 1000.0)]
    assert error_of(right, right) == 0
    wrong = [right[0] + 1, right[1]]
    assert error_of(wrong, right) == 1
    assert error_of(wrong, right, together=True) == 1e-3
    with pytest.raises(ValueError, match=r"expected shapes \[\(3, 2\), \(4,\)\], got \[\(3, 1\), \(4,\)\]"):
        error_of([torch.ones(3, 1), right[1]], right)
    with pytest.raises(ValueError, match="zip"):
        error_of(right[:1], right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_numbers_are_drawn_in_every_dtype(dtype: torch.dtype) -> None:
    found = draw(3, 5, 2, like=torch.empty(0, dtype=dtype), form=torch.sigmoid)
    assert found.dtype == dtype and torch.equal(found.double(), draw(3, 5, 2, like=torch.empty(0), form=torch.sigmoid))
    assert not torch.equal(found, draw(4, 5, 2, like=found, form=torch.sigmoid))


def cube_and_square(library: str, dtype: torch.dtype) -> Any:
    x = draw(0, 4, like=torch.empty(0, dtype=dtype))
    return lambda: [x**3, x * x if library == "geom" else x.square() + (library == "wrong")], [x]


def test_a_row_has_results_and_gradients() -> None:
    row = Row("powers", ("geom", "wrong", "missing"), cube_and_square, "torch", calls=20)
    assert [len(row.work("geom", torch.float64, gradient)()) for gradient in (False, True)] == [2, 3]
    cubes, squares, gradient = row.work("geom", torch.float64, True)()
    x = draw(0, 4, like=torch.empty(0).double())
    given = [draw(9 + k, 4, like=x) for k in range(2)]
    assert torch.allclose(gradient, 3 * x * x * given[0] + 2 * x * given[1], rtol=1e-12)
    assert torch.equal(cubes, x**3) and torch.equal(squares, x * x) and not cubes.requires_grad
    case = case_of("case", [row, row._replace(method="more", gradients=(False,), exact="")], {"missing"}, quick=False)
    assert [(c.library, c.method, c.calls) for c in case.contenders] == [
        ("geom", "powers", 20),
        ("wrong", "powers", 2),
        ("geom", "powers, with gradient", 20),
        ("wrong", "powers, with gradient", 2),
        ("geom", "more", 20),
        ("wrong", "more", 2),
    ]
    found, notes = measure(case, Plan(2, 1), pause=0)
    assert not notes
    errors = [s.scores().get("error_rel") for s in found]
    assert errors[0] is not None and errors[0] < 1e-6 and errors[1] is not None and errors[1] > 0.1
    assert errors[4:] == [None, None]


def test_the_first_result_stands_for_all() -> None:
    numbers = iter(range(10))
    library = {"count": Operation(lambda: next(numbers), lambda found: 10 * found), "other": Operation(lambda: 5)}

    def score(method: str, found: int, truth: int) -> dict[str, float]:
        return {method: float(found - truth)}

    made = contenders(
        [("a", library)], score, {"count": 1, "other": 5}.__getitem__, {"count": 3, "other": 1}.__getitem__
    )
    assert [(c.library, c.method, c.calls) for c in made] == [("a", "count", 3), ("a", "other", 1)]
    count, other = made
    work = count.start(0)
    assert count.score(work(), 0) == {"count": -1} == count.score(work(), 1) and next(numbers) == 2
    assert other.score(other.start(0)(), 0) == {"other": 0}


def test_what_is_not_timed_says_its_scores() -> None:
    contender = untimed("a", "b:", lambda: {"size": 3.0})
    assert contender.score(contender.start(0)(), 0) == {"size": 3.0}


def test_the_least_of_rounds_in_turn() -> None:
    ticks, said = iter([0, 5, 5, 6, 6, 8, 8, 11]), []
    works = [lambda: said.append("a") or len(said), lambda: said.append("b") or len(said)]
    assert least(works, 2, clock=lambda: next(ticks)) == [(2, 3), (1, 4)]
    assert said == ["a", "b", "a", "b"]


def test_threads_are_set() -> None:
    before, seen = torch.get_num_threads(), []
    try:
        scores = by_threads(lambda count: seen.append((count, torch.get_num_threads())), 2, rounds=2)
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 1), (2, 2)] * 2
    assert set(scores) == {"wall_ms_on_1", "wall_ms_on_2", "times_as_fast"} and scores["times_as_fast"] > 0
