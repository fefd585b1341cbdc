"""The model against Hugging Face's GPT-2: logits, loss and every gradient of a tiny random one.

`make test` reads what Hugging Face gave from golden/gpt2_tiny.json; the slow tests ask torch and transformers themselves.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from harness import error, worst
from numpy_gpt import flatten, tree_map

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.model import loss, transformer
from mtnlg.parallel import mesh as meshes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "gpt2_tiny.json"
REGENERATE = "if this is meant: PYTHONPATH=. python tests/parity/test_hf_gpt2.py --write, where torch and transformers are installed"
TOLERANCE = {"float32": 1e-5, "float64": 1e-9}

N, D, H, V, P = 2, 32, 4, 97, 16
F, K = 4 * D, D // H
MODEL = schema.Model(num_layers=N, d_model=D, num_heads=H, vocab_size=V, seq_len=P)  # all else by default: GPT-2's architecture
TOKENS = np.random.RandomState(1).randint(V, size=(3, 12)).astype(np.int32)

BLOCK = {  # Hugging Face's names in a block; Conv1D kernels are [in, out]
    "ln_1.weight": (D,),
    "ln_1.bias": (D,),
    "attn.c_attn.weight": (D, 3 * D),
    "attn.c_attn.bias": (3 * D,),
    "attn.c_proj.weight": (D, D),
    "attn.c_proj.bias": (D,),
    "ln_2.weight": (D,),
    "ln_2.bias": (D,),
    "mlp.c_fc.weight": (D, F),
    "mlp.c_fc.bias": (F,),
    "mlp.c_proj.weight": (F, D),
    "mlp.c_proj.bias": (D,),
}
SHAPES = {"wte.weight": (V, D), "wpe.weight": (P, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
SHAPES |= {f"h.{layer}.{name}": shape for layer in range(N) for name, shape in BLOCK.items()}


def random_tensors(seed: int) -> dict[str, np.ndarray]:
    """A tensor for each name, biases and norms random too, so that nothing hides; from RandomState, whose stream NumPy has frozen."""
    chance = np.random.RandomState(seed)
    return {name: 0.2 * chance.standard_normal(shape) + (".weight" in name and "ln_" in name) for name, shape in SHAPES.items()}


def ours(tensors: dict) -> dict:
    """Hugging Face's tensors, weights or gradients, as our tree."""

    def stacked(name, *shape):
        return np.stack([tensors[f"h.{layer}.{name}"].reshape(shape) for layer in range(N)])

    def linear(name, in_dims, out_dims):
        return {"kernel": stacked(f"{name}.weight", *in_dims, *out_dims), "bias": stacked(f"{name}.bias", *out_dims)}

    def norm(name):
        return {"scale": stacked(f"{name}.weight", D), "bias": stacked(f"{name}.bias", D)}

    query_key_value = linear("attn.c_attn", (D,), (3, H, K))  # the columns are those of q, then k, then v
    return {
        "embedding": {
            "tokens": np.pad(tensors["wte.weight"], [(0, MODEL.padded_vocab_size - V), (0, 0)]),
            "positions": tensors["wpe.weight"],
        },
        "blocks": {
            "attention_norm": norm("ln_1"),
            "attention": {
                "query": tree_map(lambda leaf: leaf[..., 0, :, :], query_key_value),
                "key_value": tree_map(lambda leaf: leaf[..., 1:, :, :].swapaxes(-2, -3), query_key_value),
                "output": linear("attn.c_proj", (H, K), (D,)),
            },
            "mlp_norm": norm("ln_2"),
            "mlp": {"up": linear("mlp.c_fc", (D,), (F,)), "down": linear("mlp.c_proj", (F,), (D,))},
        },
        "final_norm": {"scale": tensors["ln_f.weight"], "bias": tensors["ln_f.bias"]},
    }


def run_ours(dtype: str):
    """(logits [B, L, V], mean loss of the next tokens, its gradients in our tree)."""
    config = schema.Config(model=MODEL, train=schema.Train(param_dtype=dtype, compute_dtype=dtype))
    places_BL = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.int32), TOKENS.shape)
    batch = {
        "tokens": TOKENS,
        "targets": np.roll(TOKENS, -1, axis=1),
        "positions": places_BL,
        "segment_ids": np.ones_like(TOKENS),
        "weights": (places_BL < TOKENS.shape[1] - 1).astype(np.float32),
    }
    loss_and_grad = spmd.loss_and_grad(config, meshes.make(config.mesh))

    @jax.jit
    def program(params):
        x_BLD, _ = transformer.hidden(MODEL, params, batch)
        logits_TV = loss.chunk_logits(x_BLD.reshape(-1, D), transformer.head_kernel(MODEL, params), V)
        return logits_TV[:, :V].reshape(*TOKENS.shape, V), loss_and_grad(params, {name: a[None] for name, a in batch.items()}, 1, 0)

    with jax.enable_x64(dtype == "float64"):
        logits_BLV, sums = program(tree_map(lambda leaf: leaf.astype(dtype), ours(random_tensors(0))))
        return np.asarray(logits_BLV), sums["loss"] / sums["weight"], tree_map(lambda g: np.asarray(g / sums["weight"]), sums["grads"])


def run_hugging_face(dtype: str):
    """The same of transformers' GPT2LMHeadModel."""
    import torch
    import transformers

    sizes = {"n_layer": N, "n_embd": D, "n_head": H, "vocab_size": V, "n_positions": P, "bos_token_id": 0, "eos_token_id": 0}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    settings = transformers.GPT2Config(**sizes, **rates, activation_function="gelu_new", attn_implementation="eager")
    model = transformers.GPT2LMHeadModel(settings).to(getattr(torch, dtype))
    model.transformer.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in random_tensors(0).items()})
    tokens = torch.from_numpy(TOKENS).long()
    logits = model(tokens).logits
    mean = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, V), tokens[:, 1:].reshape(-1))  # its own loss is cast to float32
    mean.backward()
    grads = ours({name: parameter.grad.numpy() for name, parameter in model.transformer.named_parameters()})
    return logits.detach().numpy(), mean.item(), grads


def digest(logits_BLV, mean, grads) -> dict:
    """What the file holds: the logits of every row's last place, the loss, and [norm, random projection] of every gradient."""
    directions = flatten(ours(random_tensors(2)))
    return {
        "logits": logits_BLV[:, -1].tolist(),
        "loss": float(mean),
        "gradients": {path: [float(np.linalg.norm(g)), float(np.vdot(g, directions[path]))] for path, g in flatten(grads).items()},
    }


def check_digest(got: dict, tolerance: float):
    expected = json.loads(GOLDEN.read_text())
    assert error(got["logits"], expected["logits"]) < tolerance, REGENERATE
    assert got["loss"] == pytest.approx(expected["loss"], rel=tolerance), REGENERATE
    assert got["gradients"].keys() == expected["gradients"].keys(), REGENERATE
    for path, numbers in expected["gradients"].items():
        assert error(got["gradients"][path], numbers) < tolerance, f"{path}; {REGENERATE}"


def test_what_hugging_face_gave():
    check_digest(digest(*run_ours("float64")), TOLERANCE["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_hugging_face_now(dtype):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    logits_BLV, mean, grads = run_ours(dtype)
    expected_logits_BLV, expected_mean, expected_grads = run_hugging_face(dtype)
    assert error(logits_BLV, expected_logits_BLV) < TOLERANCE[dtype]
    assert error(mean, expected_mean) < TOLERANCE[dtype]
    worst_error, path = worst(grads, expected_grads)
    assert worst_error < TOLERANCE[dtype], path


@pytest.mark.slow
def test_the_golden_numbers_are_hugging_faces():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    check_digest(digest(*run_hugging_face("float64")), 1e-12)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    GOLDEN.write_text(json.dumps(digest(*run_hugging_face("float64")), indent=1) + "\n")
