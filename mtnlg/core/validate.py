"""What a key's value may be, and what must hold between keys: every problem at once, before any device is touched."""

from dataclasses import fields
from difflib import get_close_matches
from math import frexp, gcd, inf
from operator import attrgetter

from mtnlg.core import ranges, resuming, schema
from mtnlg.core.schema import SCHEDULES

# (what is wrong, what is right, the keys); a key that is none is right, and not-a-number never is.
_RANGES = (
    (
        "must be at least 1",
        lambda v: v >= 1,
        "model.num_layers model.d_model model.num_heads model.num_kv_heads model.head_dim model.d_ff model.vocab_size "
        "model.vocab_multiple model.seq_len model.sliding_window model.rope_original_seq_len data.tokenizer_train_bytes "
        "data.max_document_bytes train.batch_size train.microbatch_size train.loss_chunk_tokens train.ramp_start_size "
        "train.ramp_increment eval.max_tokens sample.max_new_tokens checkpoint.every_steps checkpoint.keep_last log.every_steps "
        "mesh.replica mesh.pipe mesh.data mesh.context mesh.tensor pipeline.chunks pipeline.in_flight "
        "guard.max_skipped guard.spike_window guard.spike_steps guard.skip_steps loss_scale.window loss_scale.hysteresis",
    ),
    (
        "must not be negative",
        lambda v: v >= 0,
        "model.position_offset train.num_steps train.ramp_samples optimizer.warmup_tokens eval.every_steps sample.every_steps "
        "log.norms_every_steps checkpoint.keep_every_steps checkpoint.keep_best checkpoint.fast_every_steps "
        "guard.rollback_steps guard.max_rollbacks guard.replay_every_steps guard.replicas_every_steps",
    ),
    (
        "must be above 0 and finite",
        lambda v: 0 < v < inf,
        "model.init_std model.norm_eps model.rope_theta model.rope_scaling_factor model.rope_low_freq_factor model.rope_high_freq_factor "
        "optimizer.learning_rate optimizer.eps optimizer.clip_norm guard.max_grad_norm "
        "guard.spike_deviations",
    ),
    ("is no power of two up to 2**64", lambda v: 0 < v <= 2**64 and frexp(v)[0] == 0.5, "loss_scale.initial loss_scale.floor"),
    (
        "must be 0 or above, and finite",
        lambda v: 0 <= v < inf,
        "optimizer.weight_decay sample.temperature watchdog.init_secs watchdog.compile_secs watchdog.data_secs watchdog.step_secs "
        "watchdog.evaluate_secs watchdog.save_secs",
    ),
    ("is not in [0, 1]", lambda v: 0 <= v <= 1, "optimizer.min_lr_ratio optimizer.wsd_decay_fraction"),
    ("is not in [0, 1)", lambda v: 0 <= v < 1, "model.dropout_hidden model.dropout_attention optimizer.beta1 optimizer.beta2"),
    ("is not in (0, 1]", lambda v: 0 < v <= 1, "model.rope_fraction sample.top_p"),
    ("is not between 0 and 1", lambda v: 0 < v < 1, "data.heldout_fraction"),
    ("is not in [0, 2**32)", lambda v: 0 <= v < 2**32, "seed"),
)


def problems(config: schema.Config) -> list[str]:
    """One line for each value out of range, then for each contradiction: the keys, their values, and a value that would do."""
    model, training = (_ranges, _model, _mesh, _pipeline, _layers), (_log, _batch, _optimizer, _loss_scale, _guard)
    return [line for check in (*model, *training, _data, _sample, _checkpoint) for line in check(config)]


def _ranges(config, group: str = ""):
    for wrong, is_right, names in _RANGES:
        for name in filter(lambda name: name.startswith(group), names.split()):
            value = attrgetter(name)(config)
            if value is not None and not is_right(value):
                yield f"{name}={value} {wrong}"


def _model(config):
    model = config.model
    if min(model.num_heads, model.d_model) < 1:
        return
    num_heads, num_groups, head_dim = model.heads
    if model.head_dim is None and model.d_model % num_heads:
        yield (
            f"model.d_model={model.d_model} does not divide by model.num_heads={num_heads}: "
            f"take model.num_heads={_divisor(model.d_model, num_heads)}, or set model.head_dim"
        )
    if num_groups > 0 and num_heads % num_groups:
        yield (
            f"model.num_heads={num_heads} does not divide by model.num_kv_heads={num_groups}: "
            f"take model.num_kv_heads={_divisor(num_heads, num_groups)}"
        )
    if model.position == "rope" and 0 < model.rope_fraction <= 1:
        rotated = round(head_dim * model.rope_fraction)
        if rotated % 2 or rotated == 0:
            yield f"model.rope_fraction={model.rope_fraction} rotates {rotated} of {head_dim} dims: an even number above 0 is needed"
    if model.rope_scaling != "none" and model.position != "rope":
        yield f"model.rope_scaling={model.rope_scaling} needs model.position=rope, not {model.position}"
    if model.position_offset and model.position != "learned":
        yield f"model.position_offset={model.position_offset} needs model.position=learned, not {model.position}"


def model_problems(config: schema.Config) -> list[str]:
    """A line for each key of the model out of range, and for each that contradicts another."""
    return [*_ranges(config, "model."), *_model(config)]


def mesh_problems(config: schema.Config) -> list[str]:
    """A line for each degree out of range, and for each that does not fit the model."""
    return [*_ranges(config, "mesh."), *_mesh(config)]


def _mesh(config):
    """What one device holds must be a whole number of heads, columns, rows and places."""
    model, mesh = config.model, config.mesh
    counts = (
        mesh.tensor,
        mesh.data,
        mesh.context,
        model.num_heads,
        model.num_kv_heads or 1,
        model.d_model,
        model.vocab_multiple,
        model.seq_len,
    )
    if min(counts) < 1:
        return
    if mesh.context > 1 and model.seq_len % (2 * mesh.context):
        whole = -(-model.seq_len // (2 * mesh.context)) * 2 * mesh.context
        yield (
            f"model.seq_len={model.seq_len} does not divide by 2 x mesh.context={mesh.context}: "
            f"take model.seq_len={whole}, or mesh.context={_fitting_context(model.seq_len, mesh.context)}"
        )
    for name, whole in _parted(config).items():
        if whole % mesh.tensor:
            yield f"{name} does not divide by mesh.tensor={mesh.tensor}: take mesh.tensor={_fitting_tensor(config)}"
    if not _groups_fit(model.heads[1], mesh.tensor):
        yield (
            f"model.num_kv_heads={model.heads[1]} neither divides by mesh.tensor={mesh.tensor} nor divides it: "
            f"take mesh.tensor={_fitting_tensor(config)}"
        )
    if mesh.sequence_parallel and mesh.tensor == 1:
        yield "mesh.sequence_parallel=True has nothing to part with mesh.tensor=1: take mesh.sequence_parallel=False, or mesh.tensor=2"
    if mesh.zero and model.d_model % mesh.data:
        yield (
            f"model.d_model={model.d_model} does not divide by mesh.data={mesh.data}, as mesh.zero={mesh.zero} needs: "
            f"take mesh.data={_divisor(model.d_model, mesh.data)}, or mesh.zero=0"
        )
    if mesh.zero == 3 and mesh.pipe > 1:
        yield f"mesh.zero=3 would gather every weight for every microbatch with mesh.pipe={mesh.pipe}: take mesh.zero=2"


def _pipeline(config):
    """What does not depend on the schedule's own table, which `parallel/timetable.py` makes."""
    pipeline, mesh, train = config.pipeline, config.mesh, config.train
    if pipeline.schedule not in SCHEDULES and not pipeline.schedule.endswith(".csv"):
        near = get_close_matches(pipeline.schedule, SCHEDULES, 1, 0.3) or ["1f1b"]
        yield f"pipeline.schedule={pipeline.schedule} is none of {', '.join(SCHEDULES)} or FILE.csv: take pipeline.schedule={near[0]}"
    for key, owner in (("in_flight", "zero_bubble"), ("chunks", "interleaved")):
        if getattr(pipeline, key) is not None and pipeline.schedule != owner:
            yield f"pipeline.{key}={getattr(pipeline, key)} needs pipeline.schedule={owner}, not {pipeline.schedule}"
    if mesh.pipe == 1:
        for field in fields(pipeline):
            if (value := getattr(pipeline, field.name)) != field.default:
                yield f"pipeline.{field.name}={value} needs pipeline stages: take mesh.pipe=2 or more, or leave it out"
    if mesh.pipe <= 1 or pipeline.num_chunks < 1:
        return
    chunks = pipeline.num_chunks
    if not pipeline.layers_per_stage and config.model.num_layers < mesh.pipe * chunks - 1:
        yield (
            f"model.num_layers={config.model.num_layers} cannot fill mesh.pipe={mesh.pipe} stages of {chunks} chunk{'s' * (chunks > 1)} "
            f"(the last may hold the head alone): take {_fitting_stages(config)}"
        )
    if train.microbatch_size is None:
        at_once = max(train.batch_size // max(mesh.num_sample_shards, 1) // (2 * mesh.pipe), 1)
        yield (
            f"train.microbatch_size is none, which leaves the stages of mesh.pipe={mesh.pipe} one microbatch to wait for: "
            f"take train.microbatch_size={at_once}, say"
        )
    if train.unroll_layers:
        yield f"train.unroll_layers=True: the stages of mesh.pipe={mesh.pipe} have a loop over layers; take train.unroll_layers=False"
    if config.sample.prompts:
        yield (
            f"sample.prompts cannot be continued with mesh.pipe={mesh.pipe}: take --config.sample.prompts= (nothing), and generate from "
            "the checkpoint, which needs no stages: python -m mtnlg generate --workdir=RUN"
        )


def _layers(config):
    train, mesh = config.train, config.mesh
    if train.unroll_layers and (mesh.zero == 3 or train.recompute != "none"):
        key = "mesh.zero=3" if mesh.zero == 3 else f"train.recompute={train.recompute}"
        yield (
            f"train.unroll_layers=True undoes {key}: without a loop between them the compiler merges what the backward makes again "
            "with what the forward made; take train.unroll_layers=False"
        )


def _log(config):
    if config.log.every_steps > 0 and config.log.norms_every_steps % config.log.every_steps:
        yield (
            f"log.norms_every_steps={config.log.norms_every_steps} is no multiple of log.every_steps={config.log.every_steps}: "
            f"norms stand in its lines; take {config.log.every_steps}"
        )


def _batch(config):
    train, mesh = config.train, config.mesh
    shards = max(mesh.replica * mesh.data, 1)
    size = train.microbatch_size or max(train.batch_size // shards, 1)
    whole = size * shards
    sizes = {"train.batch_size": train.batch_size}
    if train.ramp_start_size is not None:
        sizes |= {"train.ramp_start_size": train.ramp_start_size, "train.ramp_increment": train.ramp_increment}
        if train.ramp_start_size > train.batch_size:
            yield f"train.ramp_start_size={train.ramp_start_size} is above train.batch_size={train.batch_size}"
        elif (train.batch_size - train.ramp_start_size) % max(train.ramp_increment, 1):
            yield (
                f"train.ramp_increment={train.ramp_increment} does not lead from train.ramp_start_size={train.ramp_start_size} "
                f"to train.batch_size={train.batch_size}"
            )
        if train.ramp_samples < 1:
            yield f"train.ramp_samples={train.ramp_samples} must be positive when train.ramp_start_size is set"
    elif train.ramp_samples > 0:
        yield f"train.ramp_samples={train.ramp_samples} needs train.ramp_start_size, which is none"
    step = gcd(*sizes.values())
    if train.microbatch_size is None and train.ramp_start_size is not None and step % whole and step and step % shards == 0:
        yield (
            f"train.microbatch_size is none, which means all of train.batch_size={train.batch_size} at once; with a ramp from "
            f"train.ramp_start_size={train.ramp_start_size} take train.microbatch_size={step // shards}, or a part of it"
        )
        sizes = {}
    elif train.microbatch_size is None and train.ramp_start_size is None and train.batch_size % shards:
        near = max(round(train.batch_size / shards), 1) * shards
        yield (
            f"train.batch_size={train.batch_size} cannot be dealt out over mesh.replica={mesh.replica} x mesh.data={mesh.data}: "
            f"take mesh.replica x mesh.data={_divisor(train.batch_size, shards)}, or train.batch_size={near}"
        )
        sizes = {}
    for name, value in sizes.items():
        if whole < 1 or value % whole:
            near = max(round(value / max(whole, 1)), 1) * whole
            yield f"{name}={value} is no multiple of train.microbatch_size={size} x mesh.replica x mesh.data={shards}: take {near}"
        elif config.pipeline.schedule == "interleaved" and value // whole % max(mesh.pipe, 1):
            near, number = max(round(value / whole / mesh.pipe), 1) * mesh.pipe * whole, value // whole
            yield (
                f"{name}={value} makes {number} microbatch{'es' * (number > 1)}, no multiple of mesh.pipe={mesh.pipe}, as "
                f"pipeline.schedule=interleaved needs: take {name}={near}, or pipeline.schedule=1f1b"
            )
    if train.compute_dtype == "float64" and train.param_dtype != "float64":
        yield "train.compute_dtype=float64 needs train.param_dtype=float64"


def _optimizer(config):
    opt = config.optimizer
    if opt.decay_tokens is not None and opt.decay_tokens <= opt.warmup_tokens:
        yield f"optimizer.decay_tokens={opt.decay_tokens} is not above optimizer.warmup_tokens={opt.warmup_tokens}"


def _loss_scale(config):
    scale = config.loss_scale
    if scale.floor > scale.initial:
        yield f"loss_scale.floor={scale.floor} is above loss_scale.initial={scale.initial}: take loss_scale.floor=1"
    if config.train.compute_dtype != "float16":
        for field in fields(scale):
            if (value := getattr(scale, field.name)) != field.default:
                yield f"loss_scale.{field.name}={value} scales nothing without train.compute_dtype=float16: take that, or leave it out"


def _guard(config):
    guard = config.guard
    if guard.rollback_steps and guard.spike_deviations is None:
        yield f"guard.rollback_steps={guard.rollback_steps} goes back from spikes, and none are looked for: take guard.spike_deviations=6.0"


def _data(config):
    data = config.data
    if not data.source:
        yield "data.source is empty: name at least one source"
    if data.weights and len(data.weights) != len(data.source):
        yield f"data.weights has {len(data.weights)} numbers for {len(data.source)} sources"
    if not all(0 < w < inf for w in data.weights):
        yield f"data.weights={data.weights} must all be above 0 and finite"
    for text in data.skip_ranges:
        try:
            ranges.parse(text)
        except ValueError:
            yield f"data.skip_ranges={text} is no range FIRST:END of samples: take data.skip_ranges=0:100"
    if data.order == "megatron":  # it shuffles all the draws of a run beforehand: with more of them it is another order
        for key, is_set in (("data.skip_ranges", data.skip_ranges), ("guard.rollback_steps", config.guard.rollback_steps)):
            if is_set:
                yield f"{key}={attrgetter(key)(config)} cannot be honoured with data.order=megatron: take data.order=feistel"


def _sample(config):
    sample, seq_len = config.sample, config.model.seq_len
    if sample.prompts and sample.max_new_tokens >= seq_len:
        yield f"sample.max_new_tokens={sample.max_new_tokens} leaves no room for a prompt in model.seq_len={seq_len}"


def _checkpoint(config):
    checkpoint = config.checkpoint
    if checkpoint.keep_best and not config.eval.every_steps:
        yield (
            f"checkpoint.keep_best={checkpoint.keep_best} needs held-out losses on the way, and eval.every_steps is 0: "
            f"take eval.every_steps={checkpoint.every_steps}"
        )
    if checkpoint.fast_every_steps and checkpoint.fast_directory is None:
        yield f"checkpoint.fast_every_steps={checkpoint.fast_every_steps} needs a folder: take checkpoint.fast_directory=PATH"
    if checkpoint.fast_directory is not None and not checkpoint.fast_every_steps:
        every = max(checkpoint.every_steps // 10, 1)
        yield (
            f"checkpoint.fast_directory={checkpoint.fast_directory} would never be written to, as checkpoint.fast_every_steps is 0: "
            f"take checkpoint.fast_every_steps={every}"
        )
    yield from resuming.allow_problems(config)


def _parted(config) -> dict[str, int]:
    """What is dealt out over `tensor` in equal parts."""
    model, context = config.model, config.mesh.context
    parted = {
        f"model.num_heads={model.num_heads}": model.num_heads,
        f"model.d_ff={model.ff_dim}": model.ff_dim,
        f"the padded vocabulary of {model.padded_vocab_size}": model.padded_vocab_size,
    }
    if config.mesh.sequence_parallel and model.seq_len % context == 0:
        over = f" over mesh.context={context}" if context > 1 else ""
        parted |= {f"model.seq_len={model.seq_len}{over}": model.seq_len // context}
    return parted


def _fitting_context(seq_len: int, context: int) -> int:
    """The degree nearest to mesh.context that fits the sequence."""
    return 1 if seq_len % 2 else _divisor(seq_len // 2, context)


def _groups_fit(num_groups: int, tensor: int) -> bool:
    return num_groups % tensor == 0 or tensor % num_groups == 0


def _fitting_tensor(config) -> int:
    """The degree nearest to mesh.tensor that fits the model."""
    whole = gcd(*_parted(config).values())
    fitting = (t for t in range(1, whole + 1) if whole % t == 0 and _groups_fit(config.model.heads[1], t))
    return min(fitting, key=lambda t: abs(t - config.mesh.tensor))


def _fitting_stages(config) -> str:
    """The most chunks, and the most stages, that the layers and the head can fill; if there are none, the layers that would do."""
    parts, pipe, chunks = config.model.num_layers + 1, config.mesh.pipe, config.pipeline.num_chunks
    found = [f"pipeline.chunks={parts // pipe}"] if config.pipeline.schedule == "interleaved" and parts >= pipe else []
    found += [f"mesh.pipe={parts // chunks}"] if parts >= 2 * chunks else []
    return ", or ".join(found) or f"model.num_layers={pipe * chunks - 1}"


def _divisor(whole: int, near: int) -> int:
    """The divisor of `whole` nearest to `near`."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - near))
