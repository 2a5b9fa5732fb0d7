"""One training loop: mixed precision, schedules, accumulation, several processes, and a resume to the same bits."""

from geom.train.batches import stack
from geom.train.checkpoint import load_checkpoint, load_weights, save_checkpoint
from geom.train.config import TrainConfig
from geom.train.loop import adamw, train
from geom.train.schedules import Constant, Cosine, Exponential, Milestones, Schedule

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Milestones",
    "Schedule",
    "TrainConfig",
    "adamw",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
    "stack",
    "train",
]
