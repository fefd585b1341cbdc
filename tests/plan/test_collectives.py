"""The prediction, by hand for one large model, and what each option of the mesh and of training changes in it."""

import dataclasses
from collections import Counter

import pytest
from meshes import MODELS

from mtnlg import pipeline
from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.model import blockwise, transformer
from mtnlg.plan import collectives, issued, trips
from mtnlg.plan.collectives import Collective


def config_on(model="mtnlg", train=None, **mesh) -> schema.Config:
    return schema.Config(model=MODELS[model], mesh=schema.Mesh(**mesh), train=schema.Train(batch_size=16, **(train or {})))


def counts(config, part: str) -> Counter:
    """{(kind, axes, why): times} of one layer, microbatch or step."""
    found = Counter()
    for row in collectives.predict(config):
        if row.part == part:
            found[row.collective.kind, row.collective.axes, row.collective.why] += row.times
    return found


@pytest.mark.parametrize(
    ("kind", "axes", "sent"),
    [
        ("all_reduce", ("tensor",), 2 * 3 * 100),  # of 400 bytes, each device scatters and gathers three quarters
        ("all_reduce", ("data", "tensor"), 2 * 7 * 50),
        ("reduce_scatter", ("tensor",), 3 * 100),
        ("all_gather", ("tensor",), 3 * 400),  # the operand is a quarter of the whole
        ("collective_permute", ("tensor",), 400),
    ],
)
def test_bytes_of_a_ring(kind, axes, sent):
    assert Collective(kind, axes, "", "float32", 100).sent_bytes(schema.Mesh(data=2, tensor=4)) == sent


def test_the_largest_model_by_hand():
    """530 B: 240 microbatches of one sequence, 3 layers of a stage, tensor 8, data 8, ZeRO 1, all recomputed, 1F1B on 35 stages."""
    config = configs.resolve(["--config=configs/mtnlg_530b.py"])
    found, tokens, width = collectives.totals(collectives.predict(config)), 2048, 20480

    def of(why, kind, axis, dtype, elements):
        return found.pop(Collective(kind, (axis,), why, dtype, elements))

    stream = ("all_reduce", "tensor", "bfloat16", tokens * width)
    assert of("attention, out of its heads", *stream) == 240 * 3 * 2  # the forward again
    assert of("feed-forward, out of its rows", *stream) == 240 * 3 * 2
    assert of("attention, into its heads, backward", *stream) == 240 * 3
    assert of("feed-forward, into its columns, backward", *stream) == 240 * 3
    assert of("head, into the rows of the vocabulary, backward", *stream) == 240
    assert of("embedding, out of the rows of the vocabulary", "all_reduce", "tensor", "bfloat16", tokens * width) == 240 * 2
    assert of("largest logit of the whole vocabulary", "all_reduce", "tensor", "float32", 1024) == 240 * 2
    assert of("sum of exponentials, and the target's logit, over the vocabulary", "all_reduce", "tensor", "float32", 2048) == 240 * 2
    mlp, scattered = 3 * 4 * width * width // 8, "gradients, over samples, each device its shards"
    assert of("weights, gathered for the step", "all_gather", "data", "bfloat16", mlp // 8) == 2
    table = (51200 + 40) * width // 8  # filled up for 35 stages
    assert of("weights, gathered for the step", "all_gather", "data", "float32", table // 35 // 8) == 1
    assert of("embedding and head, gathered for the step", "all_gather", "pipe", "float32", table // 35) == 1
    assert of("gradients, over stages, each device its shards", "reduce_scatter", "pipe", "float32", table // 8) == 1
    for why in pipeline.MESSAGES:
        assert of(why, "collective_permute", "pipe", "bfloat16", tokens * width) == 4 * 240 + 2 * 34  # F, R, B and W, and the ends
    assert of(scattered, "reduce_scatter", "data", "float32", mlp) == 2
    assert of("mean squares, over tokens", "all_reduce", "data", "float32", 3) == 1
    assert of("mean squares, of all stages", "all_gather", "pipe", "float32", 3) == 1
    assert {one.axes for one in found} == {("data",), ("pipe",), ("pipe", "data")}


def test_one_device_needs_none():
    assert collectives.predict(config_on()) == []


def test_sequence_parallelism_sends_the_same_bytes_in_two_halves():
    """Korthikanti et al. 2022, section 4.2.2: a sum is a scattering and a gathering; only what is gathered again comes on top."""
    whole, parted = config_on(tensor=4), config_on(tensor=4, sequence_parallel=True)
    for part, again in (("layer, forward", 0), ("layer, backward", 2)):
        sent = [
            sum(row.times * row.collective.sent_bytes(config.mesh) for row in collectives.predict(config) if row.part == part)
            for config in (whole, parted)
        ]
        once = 3 * 16 * 16 * 16 // 4 * 4  # three quarters of [16, 16, 16] in float32
        assert sent == [2 * 2 * once, (2 * 2 + again) * once]
    kinds = {row.collective.kind for row in collectives.predict(parted) if row.part.startswith("layer")}
    assert kinds == {"all_gather", "reduce_scatter"}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_full_recomputation_repeats_the_sum_that_the_backward_needs(recompute):
    again = ("all_reduce", ("tensor",), "attention, out of its heads")
    assert counts(config_on(tensor=2, train={"recompute": recompute}), "layer, backward")[again] == (recompute == "full")
    # With a parallel residual only the block's output needs it, which nobody asks for again.
    assert counts(config_on("neox", tensor=2, train={"recompute": recompute}), "layer, backward")[again] == 0


WEIGHTS, GRADIENTS = ("all_gather", ("data",)), ("reduce_scatter", ("data",))


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (0, {}),
        (1, {("step", *WEIGHTS): 7, ("step", *GRADIENTS): 7}),
        (2, {("step", *WEIGHTS): 7, ("microbatch", *GRADIENTS): 7}),
        (
            3,
            {
                ("layer, forward", *WEIGHTS): 5,
                ("layer, backward", *WEIGHTS): 5,
                ("layer, backward", *GRADIENTS): 5,
                ("microbatch", *WEIGHTS): 2,
                ("microbatch", *GRADIENTS): 2,
            },
        ),
    ],
)
def test_zero_moves_seven_matrices(zero, expected):
    """Five of a block, token and position rows; biases and norms, and with ZeRO 0 everything, are summed once a step."""
    found, sums = Counter(), 0
    for row in collectives.predict(config_on(data=4, zero=zero)):
        if row.collective.kind == "all_reduce":
            sums += row.times
        else:
            found[row.part, row.collective.kind, row.collective.axes] += row.times
    assert found == expected
    assert sums == (18 if zero == 0 else 11) + 3


def test_microbatches_repeat_what_is_theirs():
    once, four = (config_on(data=2, tensor=2, zero=2, train={"microbatch_size": size}) for size in (8, 2))
    repeats = {part: {row.repeats for row in collectives.predict(four) if row.part == part} for part in collectives.PARTS}
    assert repeats == {"layer, forward": {8}, "layer, backward": {8}, "microbatch": {4}, "tick": set(), "step": {1}}
    of_step = [[row for row in collectives.predict(config) if row.part == "step"] for config in (once, four)]
    assert of_step[0] == of_step[1]


def test_dtypes_follow_the_config():
    train = {"compute_dtype": "bfloat16", "reduce_dtype": "bfloat16", "loss_chunk_tokens": 80}
    rows = collectives.predict(config_on(replica=2, data=2, tensor=2, zero=1, train=train))
    dtypes = {why: {row.collective.dtype for row in rows if row.collective.why.startswith(why)} for why in ("gradients", "weights", "loss")}
    assert dtypes == {"gradients": {"bfloat16"}, "weights": {"bfloat16", "float32"}, "loss": {"float32"}}
    chunks = [row for row in rows if row.collective.why == "largest logit of the whole vocabulary"]
    assert [(row.times, row.collective.num_elements, row.collective.dtype) for row in chunks] == [(1, 64, "float32")]


def test_one_of_the_copied_key_value_heads_is_gathered():
    """Two heads on four tensor shards: each device holds both, gathers the one it reads, and sums both over `tensor`."""
    config = config_on("llama", data=2, tensor=4, zero=3)
    sizes = {
        row.collective.num_elements: row.times
        for row in collectives.predict(config)
        if row.part == "layer, forward" and row.collective.axes == ("data",)
    }
    assert sizes[16 * 2 * 4 // 2] >= 1 and sum(sizes.values()) == 6
    summed = ("all_reduce", ("tensor",), "gradients, over heads or places")
    assert counts(config, "step")[summed] == 3  # key_value/kernel, query_norm, key_norm
    assert counts(dataclasses.replace(config, mesh=schema.Mesh(data=2, tensor=2, zero=3)), "step")[summed] == 2


KEYS = 2 * 16 * 4 * 8 * 4  # of 16 rows, 4 places, 8 heads of 4


def test_a_ring_moves_keys_once_and_twice_and_brings_their_gradients_home():
    """Round four devices: keys and values three steps in the forward and three in the backward, gradients four."""
    train = {"compute_dtype": "bfloat16"}
    found = {
        (row.part, row.collective.why): (row.times, row.collective.dtype, row.collective.num_elements)
        for row in collectives.predict(config_on(context=4, train=train))
        if row.collective.kind == "collective_permute"
    }
    assert found == {
        ("layer, forward", blockwise.KEYS): (3, "bfloat16", KEYS),
        ("layer, backward", blockwise.KEYS): (3, "bfloat16", KEYS),
        ("layer, backward", blockwise.GRADIENTS): (4, "float32", KEYS),
    }
    again = collectives.predict(config_on(context=4, train={"recompute": "full"}))
    times = [row.times for row in again if row.part == "layer, backward" and row.collective.why == blockwise.KEYS]
    assert times == [6], "with everything computed again the forward's ring goes round once more"


def staged(recompute="none", schedule="1f1b", model=MODELS["mtnlg"], **mesh) -> schema.Config:
    """Eight microbatches on two stages, of three layers and two."""
    train = schema.Train(batch_size=16, microbatch_size=2 // mesh.get("data", 1), recompute=recompute)
    model = dataclasses.replace(model, num_layers=5)
    return schema.Config(model=model, mesh=schema.Mesh(pipe=2, **mesh), train=train, pipeline=schema.Pipeline(schedule=schedule))


@pytest.mark.parametrize(("recompute", "ticks", "forwards"), [("none", 26, 1), ("full", 34, 2)])
def test_a_stage_repeats_layers_microbatches_and_ticks(recompute, ticks, forwards):
    config = staged(recompute, tensor=2, context=2)
    repeats = {part: {row.repeats for row in collectives.predict(config) if row.part == part} for part in collectives.PARTS}
    layers = 3 * 8
    assert repeats == {"layer, forward": {layers}, "layer, backward": {layers}, "microbatch": {8}, "tick": {ticks}, "step": {1}}
    assert counts(config, "tick") == {
        ("all_gather", ("context",), transformer.PLACES): 1,
        ("collective_permute", ("pipe",), pipeline.MESSAGES[0]): 1,
    }
    out = ("all_reduce", ("tensor",), "feed-forward, out of its rows")
    assert counts(config, "layer, forward")[out] + counts(config, "layer, backward")[out] == forwards
    assert counts(config, "microbatch")["all_reduce", ("tensor",), "embedding, out of the rows of the vocabulary"] == forwards


@pytest.mark.parametrize(("model", "outer"), [("mtnlg", 3), ("neox", 2)])
def test_with_zero_2_each_layer_scatters_and_a_tied_embedding_twice(model, outer):
    """Five kernels of a layer; embedding and positions on the first stage, on the last the head, which may be the embedding."""
    config, scattered = staged(data=2, zero=2, model=MODELS[model]), ("reduce_scatter", ("data",), issued.SCATTERED)
    assert {part: counts(config, part)[scattered] for part in collectives.PARTS if counts(config, part)[scattered]} == {
        "layer, backward": 5,
        "microbatch": outer,
    }


def test_all_loops_are_counted_by_name():
    """The turns of zb_v by arithmetic; the last chunk is on the first stage, with the head."""
    config = dataclasses.replace(staged("full", "zb_v"), pipeline=schema.Pipeline(schedule="zb_v", layers_per_stage=(1, 1, 1, 2)))
    found = trips.of(config)
    assert found.pop("ticks") >= 4 * 2 * 8
    assert found == dict.fromkeys("FRBW", 3 * 8) | {"embedding": 16, "embedding, backward": 8, "head": 8}
    assert trips.of(config_on(train={"microbatch_size": 4})) == {"microbatches": 4}


def test_with_stages_keys_are_gathered():
    found = {
        (row.part, row.collective.kind): (row.times, row.collective.num_elements)
        for row in collectives.predict(config_on(context=4, pipe=2))
        if row.collective.why.startswith(blockwise.ALL_KEYS)
    }
    assert found == {
        ("layer, forward", "all_gather"): (1, KEYS),
        ("layer, backward", "all_gather"): (1, KEYS),
        ("layer, backward", "reduce_scatter"): (1, 4 * KEYS),
    }


def test_gradients_of_shards_are_summed_over_context():
    """Each device has read its own places: biases and norms over both axes, matrices on their shards."""
    rows = collectives.predict(config_on(data=2, context=2))
    sums = Counter(row.collective.axes for row in rows for _ in range(row.times) if row.collective.why == "gradients, over samples")
    assert sums == {("context",): 7, ("data", "context"): 11}
