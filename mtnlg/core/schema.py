"""Every config key, once: its type, its default and what it means.

The resolved config is a tree of frozen dataclasses, so that it is hashable and can be a static argument of a jitted function.
A trailing underscore in a field's name is not part of the key (`init.from`).
"""

import dataclasses
from dataclasses import dataclass


def key(default, help: str, choices: tuple = ()):
    """A config key with its default value, its meaning, and (for words) its legal values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def section(cls: type, help: str):
    """A nested group of keys."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


@dataclass(frozen=True)
class Model:
    num_layers: int = key(4, "transformer blocks, N")
    d_model: int = key(256, "width of the residual stream, D")
    num_heads: int = key(4, "query heads, H")
    num_kv_heads: int | None = key(None, "key/value heads, G; none: as many as query heads")
    head_dim: int | None = key(None, "width of a head, K; none: d_model / num_heads")
    d_ff: int | None = key(None, "width of the feed-forward layer, F; none: 4 * d_model")
    vocab_size: int = key(8192, "tokens of the vocabulary, before padding")
    vocab_multiple: int = key(128, "the stored vocabulary is padded to a multiple of this; padded logits are masked")
    seq_len: int = key(256, "tokens of a training sequence, L; rows of the learned position table")
    position: str = key("learned", "how places are told apart", ("learned", "rope", "alibi", "none"))
    position_offset: int = key(0, "rows skipped at the start of the learned position table (2 for OPT)")
    rope_theta: float = key(10000.0, "base of the rotary frequencies")
    rope_fraction: float = key(1.0, "part of each head that is rotated (0.25 for GPT-NeoX)")
    rope_scaling: str = key("none", "stretching of the rotary frequencies", ("none", "linear", "llama3"))
    rope_scaling_factor: float = key(8.0, "factor of rope_scaling")
    rope_low_freq_factor: float = key(1.0, "llama3 scaling: wavelengths above original length / this are stretched whole")
    rope_high_freq_factor: float = key(4.0, "llama3 scaling: wavelengths below original length / this are kept")
    rope_original_seq_len: int = key(8192, "llama3 scaling: length the frequencies were trained for")
    norm: str = key("layernorm", "normalisation", ("layernorm", "rmsnorm"))
    norm_eps: float = key(1e-5, "epsilon inside the norms' square root")
    activation: str = key("gelu", "feed-forward non-linearity; gelu is the tanh form", ("gelu", "gelu_exact", "relu", "swiglu"))
    bias_qkv: bool = key(True, "biases of the query, key and value projections")
    bias_attention_output: bool = key(True, "bias of the attention's output projection")
    bias_mlp: bool = key(True, "biases of the feed-forward projections")
    bias_norm: bool = key(True, "biases of the layernorms")
    qk_norm: bool = key(False, "RMS-normalise every query and key head, before rotation")
    parallel_residual: bool = key(False, "attention and feed-forward read the same input (GPT-NeoX)")
    sliding_window: int | None = key(None, "a token sees this many tokens at most, itself included; none: all before it")
    tie_embeddings: bool = key(True, "the output head is the embedding, transposed")
    dropout_hidden: float = key(0.0, "dropout after the embedding and after each projection into the residual stream")
    dropout_attention: float = key(0.0, "dropout of attention probabilities")
    init_std: float = key(0.02, "standard deviation of initial weights; residual projections get it over sqrt(2N)")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(H, G, K): query heads, key/value heads, width of a head."""
        return self.num_heads, self.num_kv_heads or self.num_heads, self.head_dim or self.d_model // self.num_heads

    @property
    def ff_dim(self) -> int:
        """F, the feed-forward width."""
        return self.d_ff or 4 * self.d_model

    @property
    def padded_vocab_size(self) -> int:
        """V, rows of the stored embedding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclass(frozen=True)
class Data:
    source: tuple[str, ...] = key(
        ("python",),
        "what to train on: `python` (this Python's library), files or folders of .txt, .jsonl, .gz, .zst, folders of tokens",
    )
    weights: tuple[float, ...] = key((), "share of each source in a batch; none given: by its tokens")
    directory: str | None = key(None, "where prepared tokens lie; none: WORKDIR/data")
    tokenizer: str = key(
        "bpe", "`bpe` or `unigram` (trained here), or a path: .model, tokenizer.json, or a folder with vocab.json and merges.txt"
    )
    tokenizer_train_bytes: int = key(10_000_000, "text the tokenizer is trained on, at most")
    heldout_fraction: float = key(0.02, "part of the documents that is held out and never trained on, chosen by a hash of their names")
    max_document_bytes: int = key(10_000_000, "longer .txt files are cut at blank lines; longer JSON lines are left out and counted")
    order: str = key("feistel", "order of training windows", ("feistel", "megatron"))
    skip_ranges: tuple[str, ...] = key((), "samples never trained on: FIRST:END,FIRST:END as metrics.jsonl counts them without skips")
    reset_at_documents: bool = key(False, "attention and positions start again at each document inside a sequence")


@dataclass(frozen=True)
class Train:
    num_steps: int = key(1000, "optimizer steps")
    batch_size: int = key(16, "sequences of a step, over the whole mesh")
    microbatch_size: int | None = key(None, "sequences computed at once on a device; smaller ones accumulate; none: the whole batch")
    ramp_start_size: int | None = key(None, "batch size at the start; none: no ramp")
    ramp_increment: int = key(32, "sequences added at each increase of the ramp")
    ramp_samples: int = key(0, "sequences over which the batch grows to batch_size")
    compute_dtype: str = key(
        "float32",
        "type of activations and matrix products; float16 scales the loss (section loss_scale)",
        ("float32", "bfloat16", "float16", "float64"),
    )
    param_dtype: str = key("float32", "type of parameters and optimizer state", ("float32", "float64"))
    reduce_dtype: str = key(
        "float32", "type in which gradients are summed over samples; float32: that of the parameters", ("float32", "bfloat16")
    )
    recompute: str = key(
        "none", "activations computed again in the backward pass; selective: the attention core", ("none", "selective", "full")
    )
    unroll_layers: bool = key(
        False, "compile every layer on its own instead of one loop over them: faster steps on a CPU, longer compilation"
    )
    deterministic: bool = key(True, "on GPUs: operations whose results are the same each time, without autotuning; not tried on one yet")
    loss_chunk_tokens: int = key(1024, "tokens whose logits are held at once")


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = key(6e-4, "peak learning rate of AdamW")
    min_lr_ratio: float = key(0.1, "learning rate after the decay, as part of the peak")
    schedule: str = key("cosine", "decay after warm-up; wsd: stable, then linear down at the end", ("cosine", "wsd", "constant"))
    warmup_tokens: int = key(0, "tokens of linear warm-up")
    decay_tokens: int | None = key(None, "tokens at which the decay ends; none: the end of the run")
    wsd_decay_fraction: float = key(0.2, "wsd: part of decay_tokens in which the rate falls")
    beta1: float = key(0.9, "decay of Adam's first moment")
    beta2: float = key(0.95, "decay of Adam's second moment")
    eps: float = key(1e-8, "Adam's epsilon")
    weight_decay: float = key(0.1, "decoupled weight decay of matrices (not of biases and norms)")
    clip_norm: float = key(1.0, "global gradient norm is clipped to this")


@dataclass(frozen=True)
class LossScale:
    initial: float = key(2.0**32, "what the mean loss of a batch is multiplied by at the start")
    window: int = key(1000, "steps without overflow after which the scale doubles")
    hysteresis: int = key(2, "overflows before the scale is halved; counted anew when it doubles")
    floor: float = key(1.0, "the scale never falls below; an overflow there ends the run")


@dataclass(frozen=True)
class Guard:
    max_grad_norm: float | None = key(None, "steps with a larger gradient norm before clipping are skipped; none: those with no finite one")
    max_skipped: int = key(10, "so many steps skipped one after the other end the run")
    spike_deviations: float | None = key(
        6.0, "a loss so many median absolute deviations above the median of those before it stands out; none: not looked for"
    )
    spike_window: int = key(100, "losses of which that median is taken")
    spike_steps: int = key(3, "so many steps that stand out, one after the other, are a spike")
    rollback_steps: int = key(0, "at a spike the run goes back to a checkpoint so many steps before it; 0: a spike is only told")
    skip_steps: int = key(200, "and the samples of so many steps from there on, at least up to the spike, are left out")
    max_rollbacks: int = key(3, "one more spike than this ends the run")
    replay_every_steps: int = key(0, "loss and gradients of every so many-th step are computed twice more and compared; 0: never")
    replicas_every_steps: int = key(500, "copies on several devices are compared every so many steps and before each save; 0: never")


@dataclass(frozen=True)
class Eval:
    every_steps: int = key(0, "held-out loss every so many steps; 0: only at the end")
    max_tokens: int | None = key(None, "held-out tokens scored for each source on the way; none: all; the end always scores all")


@dataclass(frozen=True)
class Sample:
    every_steps: int = key(0, "write samples every so many steps; 0: only at the end")
    prompts: tuple[str, ...] = key((), "texts to continue; meanwhile a device holds its tensor shard of all weights, whatever mesh.zero")
    max_new_tokens: int = key(64, "tokens of each sample")
    temperature: float = key(0.8, "temperature of the samples")
    top_p: float = key(0.95, "nucleus of the samples")


@dataclass(frozen=True)
class Checkpoint:
    every_steps: int = key(1000, "save every so many steps, and at the end")
    keep_last: int = key(2, "newest checkpoints kept; others are deleted after a newer one is complete")
    keep_every_steps: int = key(0, "checkpoints at multiples of so many steps are never deleted; 0: none")
    keep_best: int = key(0, "so many with the least held-out loss are kept too, of those saved at steps of eval.every_steps; 0: none")
    fast_directory: str | None = key(None, "a folder on a fast disk for more frequent checkpoints of this run alone; none: no such")
    fast_every_steps: int = key(0, "save into fast_directory every so many steps, the newest one is kept; the end is saved in WORKDIR")


@dataclass(frozen=True)
class Resume:
    allow: tuple[str, ...] = key(
        (), "keys or groups (optimizer.beta2, model) that may differ from the checkpoint's at this start; data: its tokens too"
    )


@dataclass(frozen=True)
class Watchdog:
    init_secs: float | None = key(None, "longest start, preparing data included; none: no limit, as 0")
    compile_secs: float | None = key(None, "longest first step, which is compiled; none: 1 h; 0: no limit")
    data_secs: float | None = key(None, "longest wait for a batch; none: 10 min; 0: no limit")
    step_secs: float | None = key(
        None, "longest step; none: 5 x the median of the last 100, 60 s at least (1 h until 5 are done); 0: no limit"
    )
    evaluate_secs: float | None = key(None, "longest held-out loss, or samples; none: 4 h; 0: no limit")
    save_secs: float | None = key(None, "longest wait for a checkpoint; none: 1 h; 0: no limit")


@dataclass(frozen=True)
class Log:
    every_steps: int = key(10, "a line in metrics.jsonl every so many steps")
    norms_every_steps: int = key(100, "norms of gradients, parameters and activations by group every so many steps; 0: never")
    tensorboard: bool = key(True, "write TensorBoard files")


AXES = ("replica", "pipe", "data", "context", "tensor")  # of the mesh, outermost first


@dataclass(frozen=True)
class Mesh:
    replica: int = key(1, "slices or data centres, farthest apart")
    pipe: int = key(1, "pipeline stages, P")
    data: int = key(1, "data parallelism, ZeRO shards over it")
    context: int = key(1, "parts of every sequence, for long ones: keys and values go round a ring")
    tensor: int = key(1, "shards of heads, feed-forward columns and vocabulary; fastest links")
    sequence_parallel: bool = key(False, "between attention and feed-forward, each tensor shard holds its part of the places only")
    zero: int = key(
        1,
        "what is stored in shards over mesh.data: 0 nothing, 1 parameters and optimizer, 2 also gradients, 3 gathered block by block",
        (0, 1, 2, 3),
    )

    @property
    def num_sample_shards(self) -> int:
        """Groups of devices that read different samples."""
        return self.replica * self.data


SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zb_v")


@dataclass(frozen=True)
class Pipeline:
    schedule: str = key("1f1b", f"who computes what when, with mesh.pipe > 1: {', '.join(SCHEDULES)}, or a table of your own, FILE.csv")
    chunks: int | None = key(None, "interleaved: parts of the model on each stage; none: 2")
    in_flight: int | None = key(None, "zero_bubble: microbatches that a stage may hold at once; none: mesh.pipe")
    layers_per_stage: tuple[int, ...] = key(
        (), "blocks of each part of the model, in the model's order; none given: balanced, with the head counted"
    )

    @property
    def num_chunks(self) -> int:
        """C, of a schedule that has a name."""
        return {"interleaved": 2 if self.chunks is None else self.chunks, "zb_v": 2}.get(self.schedule, 1)


@dataclass(frozen=True)
class Init:
    from_: str | None = key(None, "start from the weights of this run or checkpoint, with a fresh optimizer")


@dataclass(frozen=True)
class Config:
    name: str = key("unnamed", "what this experiment is called")
    seed: int = key(1234, "of initial weights, order of samples, dropout and samples")
    model: Model = section(Model, "the network")
    data: Data = section(Data, "what it reads")
    train: Train = section(Train, "how a step is computed")
    optimizer: Optimizer = section(Optimizer, "how weights move")
    loss_scale: LossScale = section(LossScale, "of float16's gradients, with train.compute_dtype=float16")
    guard: Guard = section(Guard, "steps that leave the weights as they were, spikes of the loss, devices that compute wrongly")
    eval: Eval = section(Eval, "held-out loss")
    sample: Sample = section(Sample, "samples on the way")
    checkpoint: Checkpoint = section(Checkpoint, "what is kept")
    resume: Resume = section(Resume, "going on from a checkpoint")
    watchdog: Watchdog = section(Watchdog, "seconds a phase may take before the run ends as stuck, exit code 74")
    log: Log = section(Log, "what is reported")
    mesh: Mesh = section(Mesh, "degrees of parallelism, and what lies where")
    pipeline: Pipeline = section(Pipeline, "the order of work on pipeline stages, and their layers")
    init: Init = section(Init, "where weights start")

    @property
    def microbatch_rows(self) -> int:
        """B, sequences of a microbatch over the whole mesh."""
        shards = self.mesh.num_sample_shards
        return (self.train.microbatch_size or self.train.batch_size // shards) * shards


def leaves(cls: type = Config, prefix: str = "") -> dict[str, dataclasses.Field]:
    """Every key, dotted, with its dataclass field, in order of declaration."""
    found = {}
    for field in dataclasses.fields(cls):
        path = prefix + field.name.rstrip("_")
        if dataclasses.is_dataclass(field.type):
            found |= leaves(field.type, path + ".")
        else:
            found[path] = field
    return found
