"""A GPT in plain float64 NumPy: forward, hand-written backward and AdamW.

The independent oracle of the parity tests: it shares no code with mtnlg and uses no autodiff. Batches,
parameter tree and shape suffixes are those of docs/design.md. Every piece is a pair: `piece` returns
(output, cache) and `piece_backward` turns (d_output, cache) into the gradients of its input and of its
parameters. The einsum subscripts are the shape suffixes, and beyond the legend: J = H/G heads of a group,
C the key/value axis of size 2, R pairs of rotated dims. Keys come from the queries' places, so S = L.
"""

import math
from dataclasses import dataclass

import numpy as np

CHOICES = {
    "position": ("learned", "rope", "alibi", "none"),
    "rope_scaling": ("none", "linear", "llama3"),
    "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "gelu_exact", "relu", "swiglu"),
}


@dataclass(frozen=True)
class Spec:
    """The architecture. Which biases exist is decided by the parameter tree, not here."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int  # logical
    padded_vocab_size: int
    position: str = "learned"
    position_offset: int = 0  # learned positions: the row is position + offset
    rope_theta: float = 1e4
    rope_fraction: float = 1.0
    rope_scaling: str = "none"
    rope_scaling_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_seq_len: int = 8192
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    activation: str = "gelu"
    qk_norm: bool = False
    parallel_residual: bool = False
    sliding_window: int | None = None
    tied: bool = True

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {choices}")
        if self.num_heads % self.num_kv_heads or self.rotary_dim % 2:
            raise ValueError("num_kv_heads must divide num_heads, and the rotated part must be even")

    @property
    def rotary_dim(self):
        """How many leading dims of each head are rotated."""
        return round(self.head_dim * self.rope_fraction) if self.position == "rope" else 0


def tree_map(function, *trees):
    """Applies function leaf by leaf to trees of the same shape."""
    if isinstance(trees[0], dict):
        return {name: tree_map(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


def paths(tree, prefix=""):
    """The same tree with each leaf's path, such as blocks/mlp/up/kernel, in its place."""
    if isinstance(tree, dict):
        return {name: paths(subtree, f"{prefix}/{name}".lstrip("/")) for name, subtree in tree.items()}
    return prefix


def flatten(tree):
    """{path: leaf}"""
    flat = {}
    tree_map(flat.__setitem__, paths(tree), tree)
    return flat


def init(spec, seq_len, rng, biases=True):
    """Random parameters with nothing at zero or one, so that no term can hide. Not a training init."""
    N, D, H, G = spec.num_layers, spec.d_model, spec.num_heads, spec.num_kv_heads
    K, F, V = spec.head_dim, spec.d_ff, spec.padded_vocab_size

    def normal(*shape, std=0.3, mean=0.0):
        return mean + std * rng.standard_normal(shape)

    def linear_params(kernel_shape, bias_shape, fan_in):
        kernel = {"kernel": normal(*kernel_shape, std=fan_in**-0.5)}
        return kernel | {"bias": normal(*bias_shape)} if biases else kernel

    def norm_params(*shape, kind=spec.norm):
        scale = {"scale": normal(*shape, mean=1.0)}
        return scale | {"bias": normal(*shape)} if biases and kind == "layernorm" else scale

    attention = {
        "query": linear_params((N, D, H, K), (N, H, K), D),
        "key_value": linear_params((N, D, G, 2, K), (N, G, 2, K), D),
        "output": linear_params((N, H, K, D), (N, D), H * K),
    }
    if spec.qk_norm:
        attention["query_norm"] = norm_params(N, K, kind="rmsnorm")
        attention["key_norm"] = norm_params(N, K, kind="rmsnorm")
    mlp = {"up": linear_params((N, D, F), (N, F), D), "down": linear_params((N, F, D), (N, D), F)}
    if spec.activation == "swiglu":
        mlp["gate"] = linear_params((N, D, F), (N, F), D)
    blocks = {"attention_norm": norm_params(N, D), "attention": attention, "mlp_norm": norm_params(N, D), "mlp": mlp}
    params = {"embedding": {"tokens": normal(V, D)}, "blocks": blocks, "final_norm": norm_params(D)}
    if spec.position == "learned":
        params["embedding"]["positions"] = normal(seq_len + spec.position_offset, D)
    if not spec.tied:
        params["head"] = {"kernel": normal(D, V, std=D**-0.5)}
    return params


def linear(equation, p, x):
    """einsum(equation, x, kernel) + bias, x being [B, L, ...]."""
    return np.einsum(equation, x, p["kernel"]) + p.get("bias", 0.0), (equation, p, x)


def linear_backward(d_y, cache):
    equation, p, x = cache
    inputs, y_dims = equation.split("->")
    x_dims, kernel_dims = inputs.split(",")
    grads = {"kernel": np.einsum(f"{x_dims},{y_dims}->{kernel_dims}", x, d_y)}
    if "bias" in p:
        grads["bias"] = d_y.sum((0, 1))
    return np.einsum(f"{y_dims},{kernel_dims}->{x_dims}", d_y, p["kernel"]), grads


def norm(kind, eps, p, x):
    """LayerNorm (Ba et al. 2016, eq. 3) or RMSNorm (Zhang & Sennrich 2019, eq. 4) over the last dim."""
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    inverse_rms = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    x_hat = x * inverse_rms
    return x_hat * p["scale"] + p.get("bias", 0.0), (kind, p, x_hat, inverse_rms)


def norm_backward(d_y, cache):
    kind, p, x_hat, inverse_rms = cache
    leading = tuple(range(d_y.ndim - 1))
    grads = {"scale": (d_y * x_hat).sum(leading)}
    if "bias" in p:
        grads["bias"] = d_y.sum(leading)
    d_x_hat = d_y * p["scale"]
    d_x = inverse_rms * (d_x_hat - x_hat * (d_x_hat * x_hat).mean(-1, keepdims=True))
    if kind == "layernorm":
        d_x = d_x - d_x.mean(-1, keepdims=True)  # through the subtraction of the mean
    return d_x, grads


def rope_inv_freq(spec):
    """Rotary frequencies theta^(-2i/r) (Su et al. 2021, sec. 3.2.2), scaled as asked; empty without RoPE."""
    inv_freq = spec.rope_theta ** (-np.arange(0, spec.rotary_dim, 2) / max(spec.rotary_dim, 1))
    if spec.rope_scaling == "linear":  # position interpolation, Chen et al. 2023: positions / factor
        return inv_freq / spec.rope_scaling_factor
    if spec.rope_scaling == "llama3":  # Llama 3.1: long waves are slowed, short ones kept, a ramp between
        turns = spec.rope_original_seq_len * inv_freq / (2 * np.pi)
        low, high = spec.rope_low_freq_factor, spec.rope_high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return keep * inv_freq + (1 - keep) * inv_freq / spec.rope_scaling_factor
    return inv_freq


def rotate(x_BLHK, angles_BLR):
    """Turns the pairs (i, i + R) of the leading 2R dims (NeoX's rotate-half). Its backward turns back."""
    R = angles_BLR.shape[-1]
    cos, sin = np.cos(angles_BLR)[:, :, None], np.sin(angles_BLR)[:, :, None]
    first, second, rest = np.split(x_BLHK, [R, 2 * R], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def alibi_slopes(num_heads):
    """Press et al. 2022, sec. 3; between powers of two, every other slope of the next power fills up."""

    def geometric(n):
        return 2.0 ** (-8 * np.arange(1, n + 1) / n)

    power = 2 ** int(math.log2(num_heads))
    return np.concatenate([geometric(power), geometric(2 * power)[::2][: num_heads - power]])


def attention_bias(spec, batch):
    """[B, H, L, S]: what is added to the scores, -inf where the key is invisible. A query always sees itself."""
    positions, segments = batch["positions"].astype(int), batch["segment_ids"]
    distance_BLS = positions[:, :, None] - positions[:, None, :]
    visible_BLS = (segments[:, :, None] == segments[:, None, :]) & (distance_BLS >= 0)
    if spec.sliding_window is not None:
        visible_BLS &= distance_BLS < spec.sliding_window
    slopes_H = alibi_slopes(spec.num_heads) if spec.position == "alibi" else np.zeros(spec.num_heads)
    bias_BHLS = -slopes_H[:, None, None] * distance_BLS[:, None]
    return np.where(visible_BLS[:, None], bias_BHLS, -np.inf)


def attention(spec, p, x_BLD, angles_BLR, bias_BHLS):
    """Grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023): head h reads group h // J."""
    B, L, _ = x_BLD.shape
    H, G, K = spec.num_heads, spec.num_kv_heads, spec.head_dim
    caches = {}
    q_BLHK, caches["query"] = linear("BLD,DHK->BLHK", p["query"], x_BLD)
    kv_BSGCK, caches["key_value"] = linear("BLD,DGCK->BLGCK", p["key_value"], x_BLD)
    k_BSGK, v_BSGK = kv_BSGCK[..., 0, :], kv_BSGCK[..., 1, :]
    if spec.qk_norm:
        q_BLHK, caches["query_norm"] = norm("rmsnorm", spec.norm_eps, p["query_norm"], q_BLHK)
        k_BSGK, caches["key_norm"] = norm("rmsnorm", spec.norm_eps, p["key_norm"], k_BSGK)
    q_BLGJK = rotate(q_BLHK, angles_BLR).reshape(B, L, G, H // G, K)
    k_BSGK = rotate(k_BSGK, angles_BLR)
    scores_BGJLS = np.einsum("BLGJK,BSGK->BGJLS", q_BLGJK, k_BSGK) / math.sqrt(K)
    scores_BGJLS += bias_BHLS.reshape(B, G, H // G, L, L)
    exp_BGJLS = np.exp(scores_BGJLS - scores_BGJLS.max(-1, keepdims=True))
    probs_BGJLS = exp_BGJLS / exp_BGJLS.sum(-1, keepdims=True)
    mixed_BLGJK = np.einsum("BGJLS,BSGK->BLGJK", probs_BGJLS, v_BSGK)
    y_BLD, caches["output"] = linear("BLHK,HKD->BLD", p["output"], mixed_BLGJK.reshape(B, L, H, K))
    return y_BLD, (caches, q_BLGJK, k_BSGK, v_BSGK, probs_BGJLS, angles_BLR)


def attention_backward(d_y_BLD, cache):
    caches, q_BLGJK, k_BSGK, v_BSGK, probs_BGJLS, angles_BLR = cache
    grads = {}
    d_mixed_BLHK, grads["output"] = linear_backward(d_y_BLD, caches["output"])
    d_mixed_BLGJK = d_mixed_BLHK.reshape(q_BLGJK.shape)
    d_probs_BGJLS = np.einsum("BLGJK,BSGK->BGJLS", d_mixed_BLGJK, v_BSGK)
    d_v_BSGK = np.einsum("BGJLS,BLGJK->BSGK", probs_BGJLS, d_mixed_BLGJK)
    d_scores_BGJLS = probs_BGJLS * (d_probs_BGJLS - (probs_BGJLS * d_probs_BGJLS).sum(-1, keepdims=True))
    d_scores_BGJLS /= math.sqrt(k_BSGK.shape[-1])
    d_q_BLGJK = np.einsum("BGJLS,BSGK->BLGJK", d_scores_BGJLS, k_BSGK)
    d_k_BSGK = np.einsum("BGJLS,BLGJK->BSGK", d_scores_BGJLS, q_BLGJK)
    d_q_BLHK = rotate(d_q_BLGJK.reshape(d_mixed_BLHK.shape), -angles_BLR)
    d_k_BSGK = rotate(d_k_BSGK, -angles_BLR)
    if "query_norm" in caches:
        d_q_BLHK, grads["query_norm"] = norm_backward(d_q_BLHK, caches["query_norm"])
        d_k_BSGK, grads["key_norm"] = norm_backward(d_k_BSGK, caches["key_norm"])
    d_x_query, grads["query"] = linear_backward(d_q_BLHK, caches["query"])
    d_x_key_value, grads["key_value"] = linear_backward(np.stack([d_k_BSGK, d_v_BSGK], axis=3), caches["key_value"])
    return d_x_query + d_x_key_value, grads


def activation(kind, x):
    """(f(x), f'(x))."""
    if kind == "gelu":  # Hendrycks & Gimpel 2016, sec. 2: the tanh approximation
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)
    if kind == "gelu_exact":  # x * Phi(x)
        cdf = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        return x * cdf, cdf + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    if kind == "relu":
        return np.maximum(x, 0), (x > 0).astype(float)
    if kind == "silu":
        sigmoid = 0.5 * (1 + np.tanh(x / 2))
        return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))
    raise ValueError(f"unknown activation {kind!r}")


def mlp(spec, p, x_BLD):
    """down(f(up x)), or down(silu(gate x) * up x) (SwiGLU; Shazeer 2020, eq. 6)."""
    caches = {}
    up_BLF, caches["up"] = linear("BLD,DF->BLF", p["up"], x_BLD)
    if spec.activation == "swiglu":
        gate_BLF, caches["gate"] = linear("BLD,DF->BLF", p["gate"], x_BLD)
        f_BLF, slope_BLF = activation("silu", gate_BLF)
    else:
        f_BLF, slope_BLF = activation(spec.activation, up_BLF)
    h_BLF = f_BLF * up_BLF if "gate" in caches else f_BLF
    y_BLD, caches["down"] = linear("BLF,FD->BLD", p["down"], h_BLF)
    return y_BLD, (caches, up_BLF, f_BLF, slope_BLF)


def mlp_backward(d_y_BLD, cache):
    caches, up_BLF, f_BLF, slope_BLF = cache
    grads = {}
    d_h_BLF, grads["down"] = linear_backward(d_y_BLD, caches["down"])
    if "gate" not in caches:
        d_x_BLD, grads["up"] = linear_backward(d_h_BLF * slope_BLF, caches["up"])
        return d_x_BLD, grads
    d_x_up, grads["up"] = linear_backward(d_h_BLF * f_BLF, caches["up"])
    d_x_gate, grads["gate"] = linear_backward(d_h_BLF * up_BLF * slope_BLF, caches["gate"])
    return d_x_up + d_x_gate, grads


def block(spec, p, x_BLD, angles_BLR, bias_BHLS):
    """Pre-norm block; with parallel_residual both halves read x (GPT-NeoX; Black et al. 2022, sec. 2.1)."""
    caches = {}
    h_BLD, caches["attention_norm"] = norm(spec.norm, spec.norm_eps, p["attention_norm"], x_BLD)
    a_BLD, caches["attention"] = attention(spec, p["attention"], h_BLD, angles_BLR, bias_BHLS)
    mlp_in_BLD = x_BLD if spec.parallel_residual else x_BLD + a_BLD
    h_BLD, caches["mlp_norm"] = norm(spec.norm, spec.norm_eps, p["mlp_norm"], mlp_in_BLD)
    m_BLD, caches["mlp"] = mlp(spec, p["mlp"], h_BLD)
    return x_BLD + a_BLD + m_BLD, (spec, caches)


def block_backward(d_y_BLD, cache):
    spec, caches = cache
    grads = {}
    d_h_BLD, grads["mlp"] = mlp_backward(d_y_BLD, caches["mlp"])
    d_mlp_in_BLD, grads["mlp_norm"] = norm_backward(d_h_BLD, caches["mlp_norm"])
    d_a_BLD = d_y_BLD if spec.parallel_residual else d_y_BLD + d_mlp_in_BLD
    d_h_BLD, grads["attention"] = attention_backward(d_a_BLD, caches["attention"])
    d_x_BLD, grads["attention_norm"] = norm_backward(d_h_BLD, caches["attention_norm"])
    return d_y_BLD + d_mlp_in_BLD + d_x_BLD, grads


def forward(spec, params, batch):
    """(logits [B, L, V] with -inf at the padded vocabulary, cache)."""
    embedding = params["embedding"]
    x_BLD = embedding["tokens"][batch["tokens"]]
    if spec.position == "learned":
        x_BLD = x_BLD + embedding["positions"][batch["positions"] + spec.position_offset]
    angles_BLR = batch["positions"][..., None] * rope_inv_freq(spec)
    bias_BHLS = attention_bias(spec, batch)
    block_caches = []
    for n in range(spec.num_layers):
        block_params = tree_map(lambda leaf, n=n: leaf[n], params["blocks"])
        x_BLD, cache = block(spec, block_params, x_BLD, angles_BLR, bias_BHLS)
        block_caches.append(cache)
    x_BLD, norm_cache = norm(spec.norm, spec.norm_eps, params["final_norm"], x_BLD)
    head = {"kernel": embedding["tokens"].T} if spec.tied else params["head"]
    logits_BLV, head_cache = linear("BLD,DV->BLV", head, x_BLD)
    logits_BLV[..., spec.vocab_size :] = -np.inf
    return logits_BLV, (block_caches, norm_cache, head_cache)


def logits(spec, params, batch):
    """[B, L, padded vocabulary]."""
    return forward(spec, params, batch)[0]


def loss_and_grad(spec, params, batch):
    """(sum of weights * nll, sum of weights, gradient of the first sum in the tree of params)."""
    tokens, targets, weights = batch["tokens"], batch["targets"], batch["weights"].astype(float)
    logits_BLV, (block_caches, norm_cache, head_cache) = forward(spec, params, batch)
    shifted_BLV = logits_BLV - logits_BLV.max(-1, keepdims=True)
    log_probs_BLV = shifted_BLV - np.log(np.exp(shifted_BLV).sum(-1, keepdims=True))
    nll_BL = -np.take_along_axis(log_probs_BLV, targets[..., None], -1)[..., 0]
    one_hot_BLV = np.arange(spec.padded_vocab_size) == targets[..., None]
    d_logits_BLV = weights[..., None] * (np.exp(log_probs_BLV) - one_hot_BLV)
    d_x_BLD, head_grads = linear_backward(d_logits_BLV, head_cache)
    d_x_BLD, final_norm_grads = norm_backward(d_x_BLD, norm_cache)
    block_grads = []
    for cache in reversed(block_caches):
        d_x_BLD, grads = block_backward(d_x_BLD, cache)
        block_grads.insert(0, grads)

    d_tokens_VD = head_grads["kernel"].T.copy() if spec.tied else np.zeros_like(params["embedding"]["tokens"])
    np.add.at(d_tokens_VD, tokens, d_x_BLD)
    stacked_grads = tree_map(lambda *layers: np.stack(layers), *block_grads)
    grads = {"embedding": {"tokens": d_tokens_VD}, "blocks": stacked_grads, "final_norm": final_norm_grads}
    if spec.position == "learned":
        grads["embedding"]["positions"] = np.zeros_like(params["embedding"]["positions"])
        np.add.at(grads["embedding"]["positions"], batch["positions"] + spec.position_offset, d_x_BLD)
    if not spec.tied:
        grads["head"] = head_grads
    return (weights * nll_BL).sum(), weights.sum(), grads


def adamw_init(params):
    """The state before the first step."""
    return {"step": 0, "m": tree_map(np.zeros_like, params), "v": tree_map(np.zeros_like, params)}


def adamw_step(params, grads, state, *, learning_rate, b1, b2, eps, weight_decay, clip_norm, decays):
    """Adam (Kingma & Ba 2015, alg. 1) with decoupled decay (Loshchilov & Hutter 2019, alg. 2).

    The gradient is first clipped to the global norm clip_norm (Pascanu et al. 2013); None leaves it be.
    decays(path) says whether a leaf decays, at the rate learning_rate * weight_decay. Returns (params, state) and changes neither in place.
    """
    if clip_norm is not None:
        global_norm = math.sqrt(sum((g**2).sum() for g in flatten(grads).values()))
        scale = 1.0 if global_norm <= clip_norm else clip_norm / global_norm
        grads = tree_map(lambda g: scale * g, grads)
    step = state["step"] + 1
    m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
    v = tree_map(lambda v, g: b2 * v + (1 - b2) * g**2, state["v"], grads)

    def update(path, p, m, v):
        m_hat, v_hat = m / (1 - b1**step), v / (1 - b2**step)
        decay = weight_decay * p if decays(path) else 0.0
        return p - learning_rate * (m_hat / (np.sqrt(v_hat) + eps) + decay)

    return tree_map(update, paths(params), params, m, v), {"step": step, "m": m, "v": v}
