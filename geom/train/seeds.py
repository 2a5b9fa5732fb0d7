"""Randomness without state: each piece of work seeds every generator from its own number.

A training that was killed has then nothing to remember but the number of its step, and a piece draws the same numbers
whichever process computes it.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive", "preserved", "sow"]


def derive(seed: int, purpose: str, index: int) -> int:
    """A seed in [0, 2^63), the same on every machine, unrelated to those of other purposes and indices."""
    digest = hashlib.blake2b(f"{seed} {purpose} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sow(seed: int, device: torch.device) -> torch.Generator:
    """Seed the generators of python, numpy and torch (CPU and `device`); return one more of `device`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator is what datasets use)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Gives back the states that `sow` changes."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
