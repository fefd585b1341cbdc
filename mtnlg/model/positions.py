"""How a transformer tells places apart: rotary angles and ALiBi slopes. Learned positions are a row lookup in the embedding."""

import math

import jax.numpy as jnp
import numpy as np

from mtnlg.core import schema


def rotary_frequencies(model: schema.Model) -> np.ndarray:
    """Angles per place of each rotated pair, [R/2] float64 (Su et al. 2021, arXiv 2104.09864, section 3.4).

    `linear` scaling divides them (Chen et al. 2023, arXiv 2306.15595); `llama3` divides only those of long wavelengths and
    interpolates between (the rule of Llama 3.1's reference code).
    """
    rotated = round(model.heads[2] * model.rope_fraction)
    frequencies = model.rope_theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if model.rope_scaling == "linear":
        return frequencies / model.rope_scaling_factor
    if model.rope_scaling == "llama3":
        turns = model.rope_original_seq_len * frequencies / (2 * math.pi)  # full turns within the original length
        kept = (turns - model.rope_low_freq_factor) / (model.rope_high_freq_factor - model.rope_low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / model.rope_scaling_factor)
    return frequencies


def rotary_tables(model: schema.Model, positions_BL, dtype):
    """(cos, sin), each [B, L, R/2] in `dtype`, for `rotate`."""
    angles = positions_BL[..., None].astype(dtype) * jnp.asarray(rotary_frequencies(model), dtype)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHK, tables):
    """Rotates the first R dims of every head, pairing dim i with i + R/2 (the "rotate half" form of GPT-NeoX); the rest passes."""
    cos, sin = (table[:, :, None, :] for table in tables)
    half = cos.shape[-1]
    a, b, rest = jnp.split(x_BLHK.astype(cos.dtype), [half, 2 * half], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x_BLHK.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slopes of the linear distance penalty, [H] float64 (Press et al. 2022, arXiv 2108.12409, section 3).

    A geometric series for a power of two; otherwise the series of the power below, filled up with every second one of the next.
    """
    below = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * (num_heads - below), 2) / below)
    return np.concatenate([slopes, between])
