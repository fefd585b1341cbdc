"""What must hold between config keys: every problem at once, before any device is touched."""

from mtnlg.core import schema


def problems(config: schema.Config) -> list[str]:
    """One line for each contradiction: the keys, their values, and a value that would do."""
    found = [line for check in (_model, _sizes, _batch, _optimizer, _data, _sample, _mesh) for line in check(config)]
    return found


def _model(config):
    model = config.model
    num_heads, num_groups, head_dim = model.heads
    if model.num_heads > 0 and model.head_dim is None and model.d_model % model.num_heads:
        yield (
            f"model.d_model={model.d_model} does not divide by model.num_heads={model.num_heads}: "
            f"take model.num_heads={_divisor(model.d_model, model.num_heads)}, or set model.head_dim"
        )
    if num_groups > 0 and num_heads % num_groups:
        yield (
            f"model.num_heads={num_heads} does not divide by model.num_kv_heads={num_groups}: "
            f"take model.num_kv_heads={_divisor(num_heads, num_groups)}"
        )
    if model.position == "rope":
        rotated = round(head_dim * model.rope_fraction)
        if not 0 < model.rope_fraction <= 1 or rotated % 2 or rotated == 0:
            yield f"model.rope_fraction={model.rope_fraction} rotates {rotated} of {head_dim} dims: an even number above 0 is needed"
    elif model.rope_scaling != "none":
        yield f"model.rope_scaling={model.rope_scaling} needs model.position=rope, not {model.position}"
    if model.position_offset and model.position != "learned":
        yield f"model.position_offset={model.position_offset} needs model.position=learned, not {model.position}"
    for name in ("dropout_hidden", "dropout_attention"):
        if not 0 <= getattr(model, name) < 1:
            yield f"model.{name}={getattr(model, name)} is not in [0, 1)"


def _sizes(config):
    model, train = config.model, config.train
    positive = {f"model.{k}": getattr(model, k) for k in ("num_layers", "d_model", "num_heads", "vocab_size", "vocab_multiple", "seq_len")}
    positive |= {f"model.{k}": getattr(model, k) for k in ("num_kv_heads", "head_dim", "d_ff", "sliding_window")}
    positive |= {f"train.{k}": getattr(train, k) for k in ("batch_size", "microbatch_size", "loss_chunk_tokens", "ramp_increment")}
    positive |= {"checkpoint.every_steps": config.checkpoint.every_steps, "checkpoint.keep_last": config.checkpoint.keep_last}
    positive |= {"log.every_steps": config.log.every_steps, "data.max_document_bytes": config.data.max_document_bytes}
    for name, value in positive.items():
        if value is not None and value < 1:
            yield f"{name}={value} must be at least 1"
    if model.position_offset < 0:
        yield f"model.position_offset={model.position_offset} must not be negative"
    if config.log.every_steps > 0 and config.log.norms_every_steps % config.log.every_steps:
        yield (
            f"log.norms_every_steps={config.log.norms_every_steps} is no multiple of log.every_steps={config.log.every_steps}: "
            f"norms stand in its lines; take {config.log.every_steps}"
        )
    if train.num_steps < 0:
        yield f"train.num_steps={train.num_steps} must not be negative"


def _batch(config):
    train, mesh = config.train, config.mesh
    shards = max(mesh.replica * mesh.data, 1)
    size = train.microbatch_size or train.batch_size // shards
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
    for name, value in sizes.items():
        if whole < 1 or value % whole:
            yield f"{name}={value} is no multiple of train.microbatch_size={size} x mesh.replica x mesh.data={shards}"
    if train.compute_dtype == "float64" and train.param_dtype != "float64":
        yield "train.compute_dtype=float64 needs train.param_dtype=float64"


def _optimizer(config):
    opt = config.optimizer
    for name in ("beta1", "beta2", "min_lr_ratio"):
        if not 0 <= getattr(opt, name) <= 1:
            yield f"optimizer.{name}={getattr(opt, name)} is not in [0, 1]"
    for name in ("learning_rate", "eps", "clip_norm"):
        if not getattr(opt, name) > 0:
            yield f"optimizer.{name}={getattr(opt, name)} must be above 0"
    if opt.decay_tokens is not None and opt.decay_tokens <= opt.warmup_tokens:
        yield f"optimizer.decay_tokens={opt.decay_tokens} is not above optimizer.warmup_tokens={opt.warmup_tokens}"


def _data(config):
    data = config.data
    if not data.source:
        yield "data.source is empty: name at least one source"
    if data.weights and len(data.weights) != len(data.source):
        yield f"data.weights has {len(data.weights)} numbers for {len(data.source)} sources"
    if any(not w > 0 for w in data.weights):
        yield f"data.weights={data.weights} must all be above 0"
    if not 0 < data.heldout_fraction < 1:
        yield f"data.heldout_fraction={data.heldout_fraction} is not between 0 and 1"


def _sample(config):
    sample = config.sample
    if sample.max_new_tokens < 1:
        yield f"sample.max_new_tokens={sample.max_new_tokens} must be at least 1"
    if not 0 <= sample.temperature < float("inf"):
        yield f"sample.temperature={sample.temperature} must be 0 or above"
    if not 0 < sample.top_p <= 1:
        yield f"sample.top_p={sample.top_p} is not above 0 and at most 1"


def _mesh(config):
    for name in ("replica", "pipe", "data", "context", "tensor"):
        if getattr(config.mesh, name) < 1:
            yield f"mesh.{name}={getattr(config.mesh, name)} must be at least 1"


def _divisor(whole: int, near: int) -> int:
    """The divisor of `whole` nearest to `near`."""
    return min((d for d in range(1, whole + 1) if whole % d == 0), key=lambda d: abs(d - near))
