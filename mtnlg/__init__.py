"""mtnlg: GPT-style language models in the line of Megatron-Turing NLG 530B, in JAX and Flax."""

__version__ = "0.1.0"
