"""mtnlg: GPT-style language models in the line of Megatron-Turing NLG 530B, in JAX and Flax."""

__version__ = "0.1.0"


def from_pretrained(path, mesh=None, dtype=None, tokenizer=None, **settings):
    """The model of a run, a Hugging Face folder, a GGUF file or a Megatron-LM checkpoint: see `mtnlg.lm.from_pretrained`."""
    from mtnlg import lm

    return lm.from_pretrained(path, mesh, dtype, tokenizer, **settings)
