"""Figure 2: checkpoints that were damaged on the disk."""

import pathlib
from collections import Counter

from benchmarks.figures import Figure
from benchmarks.soak_train import mutations
from benchmarks.soak_train.runs import Inputs


def damage(folder: pathlib.Path, number: int = 200) -> Figure:
    """Mutations of every file of the newest of two steps, in turn: each has to be found, in the right file, and the other step taken."""
    whole = Inputs(folder).whole(folder / "run", "--config.train.num_steps=4")
    found = list(mutations.outcomes(whole / "checkpoints", number, seed=1))
    kinds = Counter(outcome.kind for outcome in found)
    silent = sum(not outcome.said for outcome in found)
    misnamed, lost = (sum(not getattr(outcome, name) for outcome in found) for name in ("is_named", "lands_on_older"))
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    measured = f"{number - silent} of {number} found ({told}); {misnamed} in the wrong file, {lost} times not the older step"
    return Figure(f"{number} mutations: none silent, the file named, the older step taken", measured, not silent + misnamed + lost)
