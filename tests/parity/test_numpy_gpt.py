"""Proves the oracle itself: gradients by finite differences, the rest by formulas written another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy_gpt import (
    Spec,
    activation,
    adamw_init,
    adamw_step,
    alibi_slopes,
    attention,
    attention_bias,
    flatten,
    init,
    logits,
    loss_and_grad,
    norm,
    rope_inv_freq,
    rotate,
    tree_map,
)

SEQ_LEN = 6
MTNLG = Spec(num_layers=2, d_model=8, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=10, vocab_size=11, padded_vocab_size=16)
LLAMA = replace(MTNLG, num_heads=4, head_dim=6, position="rope", norm="rmsnorm", activation="swiglu", tied=False, norm_eps=1e-3)
VARIANTS = {  # name: (spec, biases)
    "mtnlg": (MTNLG, True),
    "mtnlg_without_biases": (replace(MTNLG, head_dim=3), False),
    "opt": (replace(MTNLG, activation="relu", position_offset=2), True),
    "llama": (LLAMA, False),
    "llama_with_biases": (replace(LLAMA, num_kv_heads=1, rope_scaling="linear", rope_scaling_factor=2.0), True),
    "qwen3": (replace(LLAMA, qk_norm=True, sliding_window=2, tied=True), False),
    "llama31": (
        replace(LLAMA, rope_theta=100.0, rope_scaling="llama3", rope_scaling_factor=8.0, rope_original_seq_len=64),
        False,
    ),
    "neox": (
        replace(MTNLG, position="rope", rope_fraction=0.5, parallel_residual=True, activation="gelu_exact", tied=False),
        True,
    ),
    "bloom": (replace(MTNLG, num_heads=3, num_kv_heads=1, position="alibi", qk_norm=True), True),
    "parallel_without_positions": (replace(LLAMA, position="none", parallel_residual=True, sliding_window=3), True),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)


def make_batch(rng, spec=MTNLG):
    """Row 0: two packed documents; row 1: one document, then padding. Weights are fractional, some zero."""
    segment_ids = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0]], np.int32)
    return {
        "tokens": rng.integers(spec.vocab_size, size=(2, SEQ_LEN), dtype=np.int32),
        "targets": rng.integers(spec.vocab_size, size=(2, SEQ_LEN), dtype=np.int32),
        "positions": np.array([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 0]], np.int32),
        "segment_ids": segment_ids,
        "weights": ((segment_ids > 0) * [1, 0.5, 0, 1.5, 1, 2]).astype(np.float32),
    }


def make(name, seed=0):
    spec, biases = VARIANTS[name]
    rng = np.random.default_rng(seed)
    return spec, init(spec, SEQ_LEN, rng, biases), make_batch(rng, spec), rng


# Gradients


@each_variant
def test_gradients_match_central_finite_differences(name):
    """Every leaf, along a random direction through all of it and at one entry."""
    spec, params, batch, rng = make(name)
    loss, weight, grads = loss_and_grad(spec, params, batch)
    assert np.isfinite(loss) and weight == batch["weights"].sum()
    leaves, grad_leaves = flatten(params), flatten(grads)
    assert tree_map(np.shape, params) == tree_map(np.shape, grads)

    h = 1e-5 if spec.activation == "relu" else 1e-3  # small steps seldom cross a kink

    def slope(leaf, direction):
        """The fourth-order central difference of the loss; leaf is moved in place and put back."""
        original, loss_at = leaf.copy(), {}
        for k in (-2, -1, 1, 2):
            leaf[...] = original + k * h * direction
            loss_at[k] = loss_of(spec, params, batch)
        leaf[...] = original
        return (8 * (loss_at[1] - loss_at[-1]) - (loss_at[2] - loss_at[-2])) / (12 * h)

    for path, leaf in leaves.items():
        whole = rng.standard_normal(leaf.shape)
        single = (np.arange(leaf.size) == rng.integers(leaf.size)).astype(float).reshape(leaf.shape)
        for direction in (whole / np.linalg.norm(whole), single):
            analytic = (grad_leaves[path] * direction).sum()
            error = abs(slope(leaf, direction) - analytic)
            assert error <= 1e-8 * np.linalg.norm(grad_leaves[path]), f"{path}: {error}"


def loss_of(spec, params, batch):
    """The weighted sum of losses, from the logits."""
    z = logits(spec, params, batch)[..., : spec.vocab_size]
    log_z = np.log(np.exp(z).sum(-1))
    z_target = np.take_along_axis(z, batch["targets"][..., None], -1)[..., 0]
    return (batch["weights"] * (log_z - z_target)).sum()


@each_variant
def test_loss_is_that_of_the_logits(name):
    spec, params, batch, _ = make(name)
    np.testing.assert_allclose(loss_and_grad(spec, params, batch)[0], loss_of(spec, params, batch), rtol=1e-13)


@each_variant
def test_padded_vocabulary_takes_no_part(name):
    spec, params, batch, _ = make(name)
    assert (logits(spec, params, batch)[..., spec.vocab_size :] == -np.inf).all()
    grads = loss_and_grad(spec, params, batch)[2]
    padded = grads["embedding"]["tokens"][spec.vocab_size :]
    assert padded.shape[0] == 5 and (padded == 0).all()
    if not spec.tied:
        assert (grads["head"]["kernel"][:, spec.vocab_size :] == 0).all()


# Who sees whom


@each_variant
def test_what_each_token_can_reach(name):
    """Changing one token changes logits at its place and at later ones of its segment, and nowhere else.

    With a window W and N layers the reach is N(W-1).
    """
    spec, params, batch, _ = make(name)
    before = logits(spec, params, batch)[..., : spec.vocab_size]
    positions, segments = batch["positions"], batch["segment_ids"]
    reach = spec.num_layers * ((spec.sliding_window or SEQ_LEN) - 1)
    for b, place in np.ndindex(2, SEQ_LEN):
        tokens = batch["tokens"].copy()
        tokens[b, place] = (tokens[b, place] + 1) % spec.vocab_size
        after = logits(spec, params, batch | {"tokens": tokens})[..., : spec.vocab_size]
        changed = (after != before).any(-1)
        distance = positions[b] - positions[b, place]
        expected = (segments[b] == segments[b, place]) & (distance >= 0) & (distance <= reach)
        np.testing.assert_array_equal(changed[b], expected)
        assert not changed[1 - b].any()


@each_variant
def test_packed_documents_equal_each_alone(name):
    spec, params, batch, _ = make(name)
    packed = logits(spec, params, batch)
    for b, document in ((0, slice(0, 4)), (0, slice(4, 6)), (1, slice(0, 4))):
        alone = logits(spec, params, {field: values[b : b + 1, document] for field, values in batch.items()})
        np.testing.assert_allclose(alone[0], packed[b, document], rtol=1e-12, atol=1e-13)


def test_zero_weights_hide_targets_and_padding():
    spec, params, batch, _ = make("mtnlg")
    hidden = batch["weights"] == 0
    other = batch | {"targets": np.where(hidden, 3, batch["targets"])}
    padding = batch["segment_ids"] == 0
    other["tokens"] = np.where(padding, 7, batch["tokens"])
    loss, weight, grads = loss_and_grad(spec, params, batch)
    other_loss, other_weight, other_grads = loss_and_grad(spec, params, other)
    assert (loss, weight) == (other_loss, other_weight)
    tree_map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), grads, other_grads)


# The pieces, by other formulas


@pytest.mark.parametrize("name", ["llama", "qwen3", "neox", "bloom"])
def test_attention_is_that_of_a_loop(name):
    """One query, one head, one list of visible keys at a time; rotations as complex products."""
    spec, params, batch, rng = make(name)
    H, G, K = spec.num_heads, spec.num_kv_heads, spec.head_dim
    p = tree_map(lambda leaf: leaf[1], params["blocks"]["attention"])
    x = rng.standard_normal((2, SEQ_LEN, spec.d_model))
    angles = batch["positions"][..., None] * rope_inv_freq(spec)
    got, _ = attention(spec, p, x, angles, attention_bias(spec, batch))

    def head_vector(kernel, bias, place, norm_scale, turn):
        y = x[place] @ kernel + bias
        if norm_scale is not None and spec.qk_norm:
            y = y / math.sqrt(sum(y**2) / K + spec.norm_eps) * norm_scale
        r = round(K * spec.rope_fraction) if spec.position == "rope" and turn else 0
        for i in range(r // 2):
            turned = complex(y[i], y[i + r // 2]) * np.exp(1j * batch["positions"][place] * 10000 ** (-2 * i / r))
            y[i], y[i + r // 2] = turned.real, turned.imag
        return y

    def bias_of(site, *index):
        return p[site]["bias"][index] if "bias" in p[site] else 0.0

    for b, q_place in np.ndindex(2, SEQ_LEN):
        expected = np.zeros(spec.d_model) + bias_of("output")
        for h in range(H):
            g = h * G // H
            scale = p["query_norm"]["scale"] if spec.qk_norm else None
            q = head_vector(p["query"]["kernel"][:, h], bias_of("query", h), (b, q_place), scale, True)
            scores, values = [], []
            for k_place in range(SEQ_LEN):
                distance = int(batch["positions"][b, q_place] - batch["positions"][b, k_place])
                same = batch["segment_ids"][b, q_place] == batch["segment_ids"][b, k_place]
                if not same or distance < 0 or distance >= (spec.sliding_window or SEQ_LEN):
                    continue
                kernel = p["key_value"]["kernel"][:, g]
                scale = p["key_norm"]["scale"] if spec.qk_norm else None
                k = head_vector(kernel[:, 0], bias_of("key_value", g, 0), (b, k_place), scale, True)
                penalty = alibi_slopes(H)[h] * distance if spec.position == "alibi" else 0.0
                scores.append(math.exp(sum(q * k) / math.sqrt(K) - penalty))
                values.append(head_vector(kernel[:, 1], bias_of("key_value", g, 1), (b, k_place), None, False))
            mixed = sum(s * v for s, v in zip(scores, values, strict=True)) / sum(scores)
            expected = expected + mixed @ p["output"]["kernel"][h]
        np.testing.assert_allclose(got[b, q_place], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "llama31", "neox", "bloom", "parallel_without_positions"])
def test_only_relative_positions_matter(name):
    spec, params, batch, _ = make(name)
    shifted = batch | {"positions": batch["positions"] + 17}
    np.testing.assert_allclose(logits(spec, params, shifted), logits(spec, params, batch), rtol=1e-10, atol=1e-11)


def test_position_offset_moves_the_rows():
    spec, params, batch, _ = make("opt")
    grads = loss_and_grad(spec, params, batch)[2]["embedding"]["positions"]
    used = (grads != 0).any(-1)
    assert used.tolist() == [False, False, True, True, True, True, False, False]


def test_without_positions_a_repeated_token_looks_the_same_everywhere():
    batch = make_batch(np.random.default_rng(0)) | {"tokens": np.full((2, SEQ_LEN), 5, np.int32)}
    for name, same in (("parallel_without_positions", True), ("mtnlg", False)):
        spec, params, *_ = make(name)
        z = logits(spec, params, batch)[..., : spec.vocab_size]
        assert np.allclose(z, z[:1, :1]) == same


def test_alibi_slopes_are_the_published_ones():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-k for k in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8])
    # 12 heads, as in the authors' code: those of 8, then every other one of 16.
    np.testing.assert_allclose(alibi_slopes(12), [2.0**-k for k in range(1, 9)] + [2 ** -(k / 2) for k in (1, 3, 5, 7)])


def test_rope_rotates_the_leading_part_and_keeps_lengths():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 1, 10))
    angles = rng.standard_normal((2, 3, 3))
    y = rotate(x, angles)
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])
    z = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angles)[:, :, None]
    np.testing.assert_allclose(y[..., :6], np.concatenate([z.real, z.imag], -1))
    np.testing.assert_allclose(rotate(y, -angles), x)


def test_rope_frequencies():
    spec = replace(LLAMA, head_dim=8, rope_fraction=0.5)
    np.testing.assert_allclose(rope_inv_freq(spec), [1.0, 0.01])
    scaled = replace(spec, rope_scaling="linear", rope_scaling_factor=4.0)
    np.testing.assert_allclose(rope_inv_freq(scaled), [0.25, 0.0025])
    # Llama 3.1 (head width 128, theta 500,000, factor 8), by the wavelengths of its reference code.
    plain = replace(LLAMA, head_dim=128, rope_theta=5e5)
    llama31 = replace(plain, rope_scaling="llama3", rope_scaling_factor=8.0)
    expected = []
    for frequency in rope_inv_freq(plain):
        wavelength = 2 * math.pi / frequency
        if wavelength > 8192 / 1:
            frequency = frequency / 8
        elif wavelength >= 8192 / 4:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        expected.append(frequency)
    np.testing.assert_allclose(rope_inv_freq(llama31), expected, rtol=1e-12)


def test_activations_at_known_points():
    at = {kind: activation(kind, np.array([-1.0, 0.0, 1.0]))[0] for kind in ("gelu", "gelu_exact", "relu", "silu")}
    np.testing.assert_allclose(at["gelu_exact"], [-0.15865525393145707, 0, 0.8413447460685429], rtol=1e-12)
    np.testing.assert_allclose(at["gelu"], [-0.15880800939172324, 0, 0.8411919906082768], rtol=1e-12)
    np.testing.assert_array_equal(at["relu"], [0, 0, 1])
    np.testing.assert_allclose(at["silu"], [-1 / (1 + math.e), 0, 1 / (1 + 1 / math.e)], rtol=1e-12)


def test_norms_by_hand():
    x, p = np.array([1.0, 2.0, 3.0, 6.0]), {"scale": np.array([1.0, 2.0, 3.0, 4.0]), "bias": np.full(4, 0.5)}
    layernorm, _ = norm("layernorm", 0.5, p, x)  # mean 3, variance 3.5, so the square root is 2
    np.testing.assert_allclose(layernorm, [-0.5, -0.5, 0.5, 6.5])
    rmsnorm, _ = norm("rmsnorm", 3.5, {"scale": p["scale"]}, x)  # mean square 12.5
    np.testing.assert_allclose(rmsnorm, [0.25, 1.0, 2.25, 6.0])


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="norm"):
        replace(MTNLG, norm="batchnorm")
    with pytest.raises(ValueError, match="even"):
        replace(LLAMA, rope_fraction=0.5)


# AdamW


@pytest.mark.parametrize(("clip_norm", "scale"), [(None, 1.0), (1e9, 1.0), (2.5, 0.5)])
def test_adamw_by_hand(clip_norm, scale):
    """Two steps of one decayed and one plain number; the gradients have norm 5."""
    params = {"blocks": {"kernel": np.array([2.0])}, "bias": np.array([-1.0])}
    steps = [(3.0, 4.0), (-4.0, 3.0)]
    options = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.95, "eps": 1e-2, "weight_decay": 0.3}
    state = adamw_init(params)
    expected = {"blocks/kernel": 2.0, "bias": -1.0}
    for t, (g_kernel, g_bias) in enumerate(steps, 1):
        grads = {"blocks": {"kernel": np.array([g_kernel])}, "bias": np.array([g_bias])}
        before = tree_map(np.copy, params)
        new_params, state = adamw_step(params, grads, state, **options, clip_norm=clip_norm, decays=lambda path: path == "blocks/kernel")
        assert before == params and state["step"] == t
        params = new_params
        for i, path in enumerate(expected):
            history = [scale * g[i] for g in steps[:t]]
            m_hat = sum(0.1 * 0.9 ** (t - 1 - s) * g for s, g in enumerate(history)) / (1 - 0.9**t)
            v_hat = sum(0.05 * 0.95 ** (t - 1 - s) * g * g for s, g in enumerate(history)) / (1 - 0.95**t)
            decay = 0.3 * expected[path] if path == "blocks/kernel" else 0.0
            expected[path] -= 0.1 * (m_hat / (math.sqrt(v_hat) + 1e-2) + decay)
        assert flatten(params) == pytest.approx(expected, rel=1e-12)
