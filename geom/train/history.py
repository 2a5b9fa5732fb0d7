"""The course of a training, one JSON object a step, in a file that only grows."""

import json
from pathlib import Path

from geom.files import write_atomically

__all__ = ["History", "Record"]

Record = dict[str, float]


class History:
    """Records of steps 1, 2, ..., in memory and, where there is a path, in a file of JSON lines."""

    def __init__(self, path: Path | None, *, writes: bool) -> None:
        self.records: list[Record] = []
        self._path, self._writes = path, writes

    def resume(self, step: int) -> None:
        """Take up the records up to `step`; drop those after it, which a killed training left and which come again."""
        if self._path is None or not self._path.exists():
            return
        old = self._path.read_text()
        for line in old.splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the one it was writing when it was killed
                break
            if len(self.records) == step:
                break
            self.records.append(record)
        kept = "".join(map(_line, self.records))
        if self._writes and kept != old:
            write_atomically(self._path, kept)

    def append(self, record: Record) -> None:
        """Add the record of the next step; it is in the file before this returns."""
        self.records.append(record)
        if self._path is not None and self._writes:
            with self._path.open("a") as file:
                file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
