"""One process or several: what they share, through accelerate where torchrun started more than one."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from geom.errors import MissingDependencyError

__all__ = ["Processes"]


class Processes:
    """This process, number `index` of `count`, on its `device`. Alone, nothing below does anything."""

    def __init__(self, device: str | torch.device) -> None:
        self.count, self.index = 1, 0
        self.device: torch.device
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise MissingDependencyError("accelerate", extra="train", purpose="several processes") from error
            # it joins the processes on its first call and stays joined, for the next training of this program
            state = PartialState(cpu=device != "auto" and torch.device(device).type == "cpu")
            self.count, self.index = state.num_processes, state.process_index
            self.device = torch.device(state.device or "cpu")
            return
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.index == 0

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the tensors of the first, in place."""
        if self.count > 1:
            from accelerate.utils import broadcast

            for x in tensors:
                x.data.copy_(broadcast(x.detach().clone(memory_format=torch.contiguous_format)))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return x
        from accelerate.utils import reduce

        return reduce(x, "sum")  # type: ignore[return-value]  # a tensor for a tensor

    def wait(self) -> None:
        """Until every process is here."""
        self.sum(torch.zeros((), device=self.device))

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter the mean of its gradients, in as many messages as there are dtypes.

        A gradient that is None in one process counts as 0; where it is None in all, it stays None.
        """
        if self.count == 1:
            return
        used = self.sum(torch.tensor([p.grad is not None for p in parameters], device=self.device).int())
        moved = [p for p, n in zip(parameters, used.tolist(), strict=True) if n]
        for dtype in dict.fromkeys(p.dtype for p in moved):
            same = [p for p in moved if p.dtype == dtype]
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
            mean = self.sum(flat) / self.count
            for p, grad in zip(same, mean.split([p.numel() for p in same]), strict=True):
                p.grad = grad.view_as(p)
