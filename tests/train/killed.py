"""Run as a program: train in processes that die by SIGKILL at chosen and at random moments, going on until the end.

`python -m tests.train.killed FOLDER` compares what they leave, byte for byte, with what a training leaves that nobody
killed, and prints how many were killed and how many times a training came to its end.
"""

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch._dynamo
import tqdm  # noqa: F401

from tests.train import problem

# the system calls of writing: history and temporary file opened, the latter written, about to be renamed
MOMENTS = ("open", "os.chmod", "os.rename")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(out: Path, *, moment: int | None = None, passes: int | None = None, seconds: float | None = None) -> bool:
    """Train in a process of its own, killed at the so-many-th moment or pass, or after so long. Whether it ended."""
    pid = os.fork()
    if pid == 0:
        left = {"moments": moment, "passes": passes}

        def count(what: str) -> None:
            if left[what] is not None:
                left[what] -= 1  # type: ignore[operator]
                if left[what] == 0:
                    die()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in MOMENTS and str(arguments[0]).startswith(str(out)):
                count("moments")

        sys.addaudithook(hook)
        inner = problem.noisy_loss

        def loss(*arguments):
            count("passes")
            return inner(*arguments)

        problem.noisy_loss = loss
        if seconds is not None:
            threading.Timer(seconds, die).start()
        problem.train_everything(out)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    if not child(folder / "whole"):
        raise RuntimeError("a training that nobody killed died")
    whole = time.perf_counter() - start
    rng, kills, ends = random.Random(0), 0, 0
    plan = [{"moment": n} for n in (1, 2, 3, 5, 9, 10, 11, 12, 13, 14, 15)]
    plan += [{"passes": n} for n in (1, 2, 9, 10, 11, 16)]
    plan += [{"seconds": rng.uniform(0.1, 0.9) * whole} for _ in range(8)]
    rng.shuffle(plan)
    for where in [*plan, {}]:
        ended = child(folder / "killed", **where)
        kills += not ended
        if ended:  # compare, and let the rest of the plan kill another one
            ends += 1
            got, want = ({p.name: p.read_bytes() for p in (folder / name).iterdir()} for name in ("killed", "whole"))
            other = {name for name in got.keys() | want.keys() if got.get(name) != want.get(name)}
            if other or len(want) != 4:
                raise RuntimeError(f"{other} differ after {kills} kills, the last at {where}")
            shutil.rmtree(folder / "killed")
    print(kills, ends)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
