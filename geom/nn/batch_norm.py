"""Batch normalisation that a single row does not stop."""

from torch import Tensor, nn
from torch.nn.functional import batch_norm

__all__ = ["BatchNorm"]


class BatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, but for a batch of one row in training, or of none, which torch refuses.

    A row's variance is 0, and so is what it would be normalised to, whatever it holds: one row is taken by the running
    mean and variance instead, as outside of training, and leaves them as they are. So is a batch of no rows.

    Arguments and parameters are those of `torch.nn.BatchNorm1d` with running statistics.

    >>> import torch
    >>> BatchNorm(4)(torch.ones(1, 4)).shape
    torch.Size([1, 4])

    Guarantees: differentiable; deterministic; 1e-14 f64, 1e-6 f32 of the greatest entry
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() <= self.num_features:
            return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
