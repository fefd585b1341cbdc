"""Rotary positions for texts longer than those a model has learnt from."""

import dataclasses

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError

SCALINGS = ("none", "linear")
_WITHOUT = "rope_scaling=none"


def stretched(model: schema.Model, context: int | None, scaling: str) -> schema.Model:
    """The model with its rotary frequencies divided by context / seq_len, if scaling is "linear" (Chen et al. 2023, arXiv 2306.15595).

    Raises ConfigError for a model without rotary positions or with frequencies that are scaled otherwise, and for a context that is not
    longer than what it has learnt from.
    """
    if scaling not in SCALINGS:
        raise ConfigError(f"rope_scaling={scaling!r} is not one of {', '.join(SCALINGS)}", "rope_scaling")
    if scaling == "none":
        return model
    if model.position != "rope":
        what = f"the model's positions are of the kind {model.position}: only rotary ones can be scaled"
        raise ConfigError(what, "rope_scaling", _WITHOUT)
    if model.rope_scaling not in SCALINGS:
        raise ConfigError(f"the model's rotary positions are scaled already, by the rule {model.rope_scaling}", "rope_scaling", _WITHOUT)
    if context is None or context <= model.seq_len:
        what = f"the model has learnt from {model.seq_len} tokens at a time: for no more there is nothing to scale"
        raise ConfigError(what, "rope_scaling", f"context={2 * model.seq_len}, say")
    before = model.rope_scaling_factor if model.rope_scaling == "linear" else 1.0
    return dataclasses.replace(model, rope_scaling="linear", rope_scaling_factor=before * context / model.seq_len)


def notes(model: schema.Model, context: int, scaling: str) -> list[str]:
    """What a user is told of a context that is longer than what the model has learnt from."""
    if context <= model.seq_len or model.position == "learned":
        return []
    if scaling == "linear":
        return [f"rotary positions are scaled by {context / model.seq_len:g}, so that {context} tokens lie where {model.seq_len} did"]
    return [f"the model has learnt from {model.seq_len} tokens at a time: what comes after them may be nonsense"]
