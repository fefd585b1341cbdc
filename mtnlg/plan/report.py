"""What `mtnlg plan --explain-sharding` prints: where every parameter lies, and every collective of a step."""

import math
from collections import Counter, defaultdict

from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import stages, timetable
from mtnlg.plan import collectives, lowered, optimised, sharding, trips
from mtnlg.plan.text import size, table
from mtnlg.train import step as steps


def describe(config: schema.Config) -> str:
    """Both tables with their totals. Raises ConfigError for tables and schedules that do not fit the config."""
    if config.mesh.pipe > 1:
        timetable.of_full_batch(config)
    lines = [f"{config.name}: {meshes.in_words(config.mesh)}. All bytes are of one device.", ""]
    return "\n".join([*lines, *_sharding(config), "", *_collectives(config)])


def _sharding(config: schema.Config) -> list[str]:
    rows = sharding.rows(config)
    head = ("parameter", "shape", "stored", "computed with", "bytes", "gradient", "Adam")
    cells = [
        (row.path, str(list(row.shape)), *(_shown(config, spec) for spec in (row.storage, row.compute)), *map(size, _bytes_of(row)))
        for row in rows
    ]
    sums = [sum(column) for column in zip(*map(_bytes_of, rows), strict=True)]
    lines = table([head, *cells, ("all", "", "", "", *map(size, sums))], "<<<<>>>")
    one_block = ", one block's at a time" if config.mesh.zero == 3 else ""
    whole = {
        **dict(zip(("parameters", "gradients while they accumulate", "Adam's moments"), sums, strict=True)),
        f"weights, cast or gathered for a step{one_block}": sum(row.copy_bytes for row in rows),
        "gradients of a microbatch": sum(row.microbatch_bytes for row in rows),
    }
    whole["together, without activations"] = sum(whole.values())
    lines += ["", *table([(f"  {name}", size(n), f"({n:,} bytes)") for name, n in whole.items()], "<>>")]
    if config.mesh.pipe > 1:
        cut = stages.of(config)
        numbers = " to ".join(str(number) for number in sorted({cut.counts.sum(axis=1).min(), cut.counts.sum(axis=1).max()}))
        lines.append(f"A stage has {numbers} of the {config.model.num_layers} layers, and room for {cut.layers[0].size}.")
    for path, axis, applies, reason in sharding.COPIED:
        if getattr(config.mesh, axis) > 1 and applies(config) and any(row.path == path for row in rows):
            lines.append(f"{path} is copied along {axis}: {reason}.")
    return lines


def _shown(config: schema.Config, spec: P) -> str:
    return sharding.show(sharding.without_short(config.mesh, spec))


def _bytes_of(row: sharding.Row) -> tuple[int, int, int]:
    return row.param_bytes, row.gradient_bytes, row.optimizer_bytes


def _collectives(config: schema.Config) -> list[str]:
    rows = collectives.predict(config)
    microbatches = config.train.batch_size // config.microbatch_rows
    a_step = f"a step of {microbatches} microbatch{'es' * (microbatches > 1)}"
    if not rows:
        return [f"No collectives in {a_step}: nothing is sharded."]
    times, operands, sent = Counter(), defaultdict(set), Counter()
    for row in rows:
        one = row.collective
        line = (row.part, one.kind, "+".join(one.axes), one.dtype, one.why)
        times[line] += row.times
        operands[line].add(one.num_bytes)
        sent[line] += row.count * one.sent_bytes(config.mesh)
    cells = [("in each", "collective", "over", "in", "times", "operand", "sent a step", "why")]
    for line, number in times.items():
        smallest, largest = min(operands[line]), max(operands[line])
        operand = size(largest) if smallest == largest else f"{size(smallest)} to {size(largest)}"
        cells.append((*line[:4], str(number), operand, size(sent[line]), line[4]))
    of_stages = "With stages: a layer as on the stage with most layers, the embedding as on the first, the head as on the last."
    tokens = f"{config.microbatch_rows // config.mesh.num_sample_shards} x {config.model.seq_len // config.mesh.context} tokens"
    return [
        f"Collectives of {a_step}, {tokens} on a device. Sent: by ring algorithms, which send",
        "(n-1)/n of the whole for all_gather and reduce_scatter, twice that for all_reduce, and what collective_permute passes on.",
        *([of_stages] if config.mesh.pipe > 1 else []),
        "",
        *table(cells, "<<<<>>><"),
        "",
        *_summary(config, rows),
    ]


def _summary(config: schema.Config, rows: list[collectives.Row]) -> list[str]:
    """A line on one layer of one microbatch, one on the step."""
    a_layer = [row for row in rows if row.part.startswith("layer")]
    in_words = []
    for part in ("layer, forward", "layer, backward"):
        kinds = Counter()
        for row in a_layer:
            kinds[row.collective.kind] += row.times * (row.part == part)
        in_words.append(f"{part.split()[-1]} {' + '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()) if n) or 'none'}")
    of_layer = sum(row.times * row.collective.sent_bytes(config.mesh) for row in a_layer)
    of_step = sum(row.count * row.collective.sent_bytes(config.mesh) for row in rows)
    number = sum(row.count for row in rows)
    return [
        f"A layer, each microbatch: {', '.join(in_words)}; a device sends {size(of_layer)}.",
        f"A step: {number:,} collectives; a device sends {size(of_step)} ({of_step:,} bytes).",
    ]


def check(config: schema.Config) -> tuple[str, bool]:
    """Lowers and compiles the step: (what was found, whether it is as predicted and outside `shard_map` only scalars travel)."""
    mesh = meshes.make(config.mesh)
    predicted, step = collectives.totals(collectives.predict(config)), steps.lower(config, mesh)
    turns = trips.of(config)
    asked, made = lowered.count(step, mesh, turns), optimised.count(step.compile().as_text(), dict(mesh.shape), turns)
    wrong = [
        f"{one.why}: {one.kind} of {one.dtype} over {'+'.join(one.axes)}, {one.num_bytes:,} bytes: {asked[one]}, not {predicted[one]}"
        for one in {**predicted, **asked}
        if predicted[one] != asked[one]
    ]
    lines = [f"Checked on {math.prod(mesh.shape.values())} virtual CPU devices. The lowered step has {asked.total():,} collectives,"]
    lines += ["but not those above:", *(f"  {line}" for line in wrong)] if wrong else ["exactly those above."]
    lines += ["What XLA made of them:", *(f"  {line}" for line in optimised.differences(asked, made) or ["the same"])]
    strangers = optimised.strangers(made)
    lines += ["Outside shard_map more than scalars travels:", *(f"  {line}" for line in strangers)] if strangers else []
    return "\n".join(lines), not wrong and not strangers
