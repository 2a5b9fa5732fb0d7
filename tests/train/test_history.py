import json
from pathlib import Path

import pytest

from geom.train.history import History

RECORDS = [{"step": step, "loss": 1 / step} for step in (1, 2, 3, 4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    history = History(tmp_path / "history.jsonl", writes=True)
    for record in RECORDS:
        history.append(record)
    return tmp_path / "history.jsonl"


def test_each_record_is_a_line_of_json(path: Path) -> None:
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS


@pytest.mark.parametrize("step", [0, 2, 3])
def test_it_goes_on_after_a_step_without_gaps_or_doubles(path: Path, step: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])  # killed in the middle of the last line
    history = History(path, writes=True)
    history.resume(step)
    assert history.records == RECORDS[:step] == [json.loads(line) for line in path.read_text().splitlines()]
    for record in RECORDS[step:]:
        history.append(record)
    assert path.read_bytes() == whole


def test_one_process_reads_what_another_writes(path: Path) -> None:
    whole = path.read_bytes()
    history = History(path, writes=False)
    history.resume(2)
    history.append(RECORDS[2])
    assert history.records == RECORDS[:3] and path.read_bytes() == whole


def test_without_a_path_it_is_a_list(tmp_path: Path) -> None:
    history = History(None, writes=True)
    history.resume(5)
    history.append(RECORDS[0])
    assert history.records == RECORDS[:1] and not list(tmp_path.iterdir())
