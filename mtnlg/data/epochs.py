"""How often a run reads each of its sources."""

from collections.abc import Sequence
from typing import NamedTuple

from mtnlg.data.edits import EditedBlend


class Reading(NamedTuple):
    """Of one source in a run.

    weight: its share of the samples. samples: drawn in the whole run. epochs: how often its tokens are read.
    sampling: epochs over those that every source would get if samples were drawn by tokens; above 1 the source is over-sampled.
    """

    name: str
    tokens: int
    weight: float
    samples: int
    epochs: float
    sampling: float


def of_run(names: Sequence[str], tokens: Sequence[int], blend: EditedBlend, num_samples: int, seq_len: int) -> list[Reading]:
    """The readings of a run of num_samples samples of seq_len tokens; tokens: of each source; weight: that of the blend's last edit."""
    weights = blend.edits[-1].weights
    by_tokens = num_samples * seq_len / sum(tokens)
    found = []
    for name, num_tokens, weight, drawn in zip(names, tokens, weights, blend.drawn(num_samples).tolist(), strict=True):
        epochs = drawn * seq_len / num_tokens
        sampling = epochs / by_tokens if num_samples else 1.0
        found.append(Reading(name, num_tokens, weight / sum(weights), drawn, epochs, sampling))
    return found
