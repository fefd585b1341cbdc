"""Sequences that one device could not hold: with the sequence in parts a device's share stays what it was, by the compiler's own account.

Compiled for CPUs, nothing runs. Temporaries of a CPU's program are a trend, not what a GPU would need.
"""

from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.train import step as steps

ROWS, LENGTH = 2, 512


def temporaries(length: int, context: int) -> int:
    """Bytes that a step holds on one device beside its arguments, most of them activations."""
    model = schema.Model(num_layers=3, d_model=32, num_heads=4, d_ff=64, vocab_size=64, vocab_multiple=64, seq_len=length, position="rope")
    train = schema.Train(batch_size=ROWS, compute_dtype="float32", recompute="selective", loss_chunk_tokens=64)
    config = schema.Config(model=model, train=train, mesh=schema.Mesh(context=context))
    return steps.lower(config, meshes.make(config.mesh)).compile().memory_analysis().temp_size_in_bytes


def test_twice_the_sequence_on_twice_the_devices_needs_no_more_of_each():
    """On one device twice the sequence has four times the scores."""
    parted = {context: temporaries(LENGTH * context, context) for context in (2, 4, 8)}
    alone = {context: temporaries(LENGTH * context, 1) for context in (2, 4)}
    print(f"{LENGTH} places on a device: {parted} bytes on each; the same sequences on one: {alone}")
    assert parted[4] < 1.05 * parted[2] and parted[8] < 1.05 * parted[4]
    assert alone[4] > 3 * alone[2] and alone[4] > 12 * parted[4]
