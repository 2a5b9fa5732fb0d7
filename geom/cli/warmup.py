"""`geom warmup`."""

from typing import Literal

__all__ = ["warmup"]


def warmup(device: Literal["cpu", "cuda"] = "cpu") -> int:
    """Compile every kernel now, so that no later run waits for it.

    The compiled kernels stay in Warp's cache; a second warm-up takes a second.

    Args:
        device: Where the kernels are to run.
    """
    import torch

    from geom.errors import ShapeError
    from geom.kernels import bridge

    if device == "cuda" and not torch.cuda.is_available():
        raise ShapeError("device: expected cpu, got cuda, and torch sees no CUDA device")
    seconds = bridge.warmup(device)
    for name, took in seconds.items():
        print(f"{name:<16} {took:6.2f} s")
    print(f"{len(seconds)} kernel modules ready on {device} after {sum(seconds.values()):.1f} s")
    return 0
