"""mtnlg: GPT-style language models in the line of Megatron-Turing NLG 530B, in JAX and Flax."""

__version__ = "0.1.0"


def from_pretrained(path, mesh=None, dtype=None):
    """The model of a run's folder or of one checkpoint, ready to work with: see `mtnlg.lm.from_pretrained`."""
    from mtnlg import lm

    return lm.from_pretrained(path, mesh, dtype)
