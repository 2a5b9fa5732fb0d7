"""Rounds, orders, medians and clocks of the harness, with contenders and a clock that are made up."""

import pytest

from benchmarks.harness import Case, Contender, Moment, Plan, Sample, Series, measure
from benchmarks.part import Usage, check_one_thread, check_other_work, installed


class World:
    """A clock that only work advances: each run costs the contender its next price, on two threads."""

    def __init__(self, prices: dict[str, list[float]]) -> None:
        self.prices, self.time, self.ran, self.started = prices, 0.0, [], []

    def clock(self) -> Moment:
        return Moment(cpu=2 * self.time, wall=self.time)

    def contender(self, library: str) -> Contender:
        rest = iter(self.prices[library])

        def start(seed: int):
            self.started.append((library, seed))
            self.time += 100  # preparing is not timed

            def work() -> str:
                self.time += next(rest)
                self.ran.append((library, seed))
                return f"{library}{seed}"

            return work

        def score(output: str, seed: int) -> dict[str, float]:
            assert output == f"{library}{seed}"
            self.time += 100  # nor is scoring
            return {"error_m": float(seed)}

        return Contender(library, "method", start, score)

    def measure(self, plan: Plan, **options):
        case = Case("case", [self.contender(library) for library in self.prices])
        return measure(case, plan, clock=self.clock, pause=0, **options)


def test_each_round_runs_everyone_once_and_begins_with_another() -> None:
    world = World({name: [1.0] * 4 for name in "abc"})
    world.measure(Plan(rounds=3, seeds=2))
    rounds = [world.ran[i : i + 3] for i in range(0, 12, 3)]
    assert len(world.ran) == 12, "a warm-up round, then three"
    assert [[name for name, _ in one] for one in rounds] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert [{seed for _, seed in one} for one in rounds] == [{0}, {0}, {1}, {0}]


def test_the_warm_up_is_not_counted_and_only_work_is_timed() -> None:
    world = World({"a": [1000.0, 1.0, 5.0, 2.0], "b": [1000.0, 4.0, 4.0, 7.0]})
    (a, b), notes = world.measure(Plan(rounds=3, seeds=3))
    assert notes == []
    assert [sample.wall_ms for sample in a.samples] == pytest.approx([1000, 5000, 2000])
    assert (a.milliseconds("wall"), a.milliseconds("cpu")) == pytest.approx((2000, 4000))
    assert b.milliseconds("wall") == pytest.approx(4000)


def test_waiting_for_the_device_is_timed() -> None:
    world = World({"a": [1.0] * 3})

    def finish() -> None:
        world.time += 3

    ((a,), _) = world.measure(Plan(rounds=2, seeds=1), finish=finish)
    assert a.milliseconds("wall") == pytest.approx(4000)


def test_scores_count_each_seed_once() -> None:
    samples = [Sample(seed, 1.0, 1.0, {"error_m": error}) for seed, error in ((0, 1.0), (1, 5.0), (0, 9.0), (0, 9.0))]
    assert Series("case", "a", "method", samples).scores() == {"error_m": 3.0}


def test_a_contender_that_raises_is_left_out_and_named() -> None:
    world = World({"a": [1.0], "b": [1.0] * 4})  # a stops after its warm-up
    series, notes = world.measure(Plan(rounds=3, seeds=1))
    assert [s.library for s in series] == ["b"] and len(series[0].samples) == 3
    assert len(notes) == 1 and "a method: left out" in notes[0]


def test_a_missing_package_is_left_out_and_named() -> None:
    def here(*_: object):
        yield from ()

    found, notes = installed([("math", here), ("no_such_package", here), ("no_such_package", here)])
    assert found == [here]
    assert len(notes) == 1 and notes[0].startswith("no_such_package: left out")


def test_one_thread_is_checked_by_cpu_over_wall_time() -> None:
    one, two = (Series("case", name, "method", [Sample(0, cpu, 1.0, {})] * 2) for name, cpu in (("a", 1.0), ("b", 1.9)))
    (note,) = check_one_thread([one, two])
    assert note.startswith("case, b method: not on one thread")


def test_other_work_on_the_machine_is_noted() -> None:
    before = Usage(wall=100.0, own=10.0, everyone=1000.0)
    assert check_other_work(before, Usage(wall=110.0, own=15.0, everyone=1005.5), 2) is None
    assert check_other_work(before, Usage(wall=110.0, own=15.0, everyone=1013.0), 2) == (
        "other work took 40% of the machine's cores"
    )
    a, b = Usage.now(), Usage.now()
    assert b.wall >= a.wall and b.own >= a.own and b.everyone >= a.everyone
