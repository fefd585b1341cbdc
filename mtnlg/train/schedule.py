"""What depends on how far a run has come: the batch size and the learning rate. Host arithmetic on exact counts."""

import math
from typing import NamedTuple

from mtnlg.core import schema


class Position(NamedTuple):
    """How far a run has come; all the state there is beside parameters and optimizer."""

    step: int = 0
    samples: int = 0
    tokens: int = 0

    def after(self, batch_size: int, seq_len: int) -> "Position":
        return Position(self.step + 1, self.samples + batch_size, self.tokens + batch_size * seq_len)


def batch_size(train: schema.Train, samples: int) -> int:
    """Sequences of the next step when `samples` were consumed (Megatron-LM's ramp: equal shares of ramp_samples at each size)."""
    if train.ramp_start_size is None or samples >= train.ramp_samples:
        return train.batch_size
    increases = (train.batch_size - train.ramp_start_size) // train.ramp_increment
    if increases == 0:
        return train.batch_size
    return train.ramp_start_size + samples * increases // train.ramp_samples * train.ramp_increment


def position_at(config: schema.Config, step: int) -> Position:
    """Where a run is when `step` steps are done."""
    train, position = config.train, Position()
    while position.step < step and batch_size(train, position.samples) != train.batch_size:
        position = position.after(batch_size(train, position.samples), config.model.seq_len)
    samples = position.samples + (step - position.step) * train.batch_size
    return Position(step, samples, samples * config.model.seq_len)


def final_position(config: schema.Config) -> Position:
    """Where a run of train.num_steps ends."""
    return position_at(config, config.train.num_steps)


def learning_rate(optimizer: schema.Optimizer, tokens: int, total_tokens: int) -> float:
    """The rate of the step that ends at `tokens` consumed.

    Linear warm-up; then cosine (Megatron-LM's formula), or stable and a linear fall at the end (WSD, Hu et al. 2024,
    arXiv 2404.06395, section 4), down to min_lr_ratio of the peak, which then stays.
    """
    peak, floor = optimizer.learning_rate, optimizer.learning_rate * optimizer.min_lr_ratio
    if tokens < optimizer.warmup_tokens:
        return peak * tokens / optimizer.warmup_tokens
    end = optimizer.decay_tokens or total_tokens
    if optimizer.schedule == "constant":
        return peak
    if tokens >= end:
        return floor
    if optimizer.schedule == "wsd":
        start = max(end - int(optimizer.wsd_decay_fraction * end), optimizer.warmup_tokens)
        return peak if tokens <= start else peak - (peak - floor) * (tokens - start) / (end - start)
    done = (tokens - optimizer.warmup_tokens) / (end - optimizer.warmup_tokens)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))
