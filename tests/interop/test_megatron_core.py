"""Megatron-LM's own model as the judge: it computes the same logits from its checkpoint as we do, and takes the ones that we write."""

import argparse
import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from megatron_tree import random_params
from test_megatron import assert_same, params_of, whole, write_tree

from mtnlg.core import schema
from mtnlg.core.tree import map_with_path
from mtnlg.interop import megatron, megatron_args, megatron_file, megatron_ranks
from mtnlg.model import count, loss, transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

L, V = 16, 128
OLD = schema.Model(num_layers=2, d_model=32, num_heads=4, vocab_size=V, seq_len=L)
ROPE = dataclasses.replace(OLD, position="rope", activation="gelu_exact", tie_embeddings=False)
GROUPED = dataclasses.replace(
    ROPE, num_heads=8, num_kv_heads=2, head_dim=8, d_ff=48, norm="rmsnorm", activation="swiglu", bias_attention_output=False
)
MODELS = {
    "gpt2": OLD,
    "gated, with biases": dataclasses.replace(OLD, activation="swiglu", d_ff=48),
    "a part of each head rotates": dataclasses.replace(ROPE, rope_fraction=0.5, rope_theta=500.0),
    "positions stretched": dataclasses.replace(ROPE, rope_scaling="linear", rope_scaling_factor=4.0),
    "positions of Llama 3": dataclasses.replace(ROPE, rope_scaling="llama3", rope_theta=500000.0),
    "a window": dataclasses.replace(ROPE, sliding_window=5, position="none"),
    "Llama": dataclasses.replace(GROUPED, bias_qkv=False, bias_mlp=False, bias_norm=False),
    "Qwen": dataclasses.replace(GROUPED, bias_mlp=False, bias_norm=False, qk_norm=True, norm_eps=1e-6),
}
MANY_GROUPS = dataclasses.replace(MODELS["Qwen"], num_kv_heads=4)


@pytest.fixture(scope="module", autouse=True)
def needed():
    pytest.importorskip("torch"), pytest.importorskip("megatron.core")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Dropout, which is off, keeps no state of a GPU's, and masks are not made on one."""
    import torch
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *sizes, device=None, **options: ones(*sizes, **options))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(CudaRNGStatesTracker, "fork", lambda tracker: contextlib.nullcontext())


@contextlib.contextmanager
def rank_of(rank: int, num_ranks: int, stage: int, num_stages: int):
    """Megatron's groups as this rank sees them, the others only pretended: models can be made, and computed with where it is alone."""
    import torch
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    size, own = num_ranks * num_stages, stage * num_ranks + rank
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=own, world_size=size)
    try:
        parallel_state.initialize_model_parallel(num_ranks, num_stages, create_gloo_process_groups=False)
        assert parallel_state.get_tensor_model_parallel_rank() == rank
        assert parallel_state.get_pipeline_model_parallel_rank() == stage
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


@pytest.fixture
def alone():
    with rank_of(0, 1, 0, 1):
        yield


def theirs(args: dict, noise: float = 0.1, first: bool = True, last: bool = True):
    """Megatron's model of these args, its numbers at random (megatron/training/arguments.py, core_transformer_config_from_args)."""
    import torch
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    said = argparse.Namespace(**args)
    config = TransformerConfig(
        num_layers=said.num_layers,
        hidden_size=said.hidden_size,
        ffn_hidden_size=said.ffn_hidden_size,
        num_attention_heads=said.num_attention_heads,
        num_query_groups=said.num_query_groups if said.group_query_attention else None,
        kv_channels=said.kv_channels,
        normalization=said.normalization,
        layernorm_epsilon=said.norm_epsilon,
        add_bias_linear=said.add_bias_linear,
        add_qkv_bias=said.add_qkv_bias,
        qk_layernorm=said.qk_layernorm,
        gated_linear_unit=said.swiglu,
        activation_func=torch.nn.functional.silu if said.swiglu else torch.nn.functional.gelu,
        bias_activation_fusion=said.bias_swiglu_fusion if said.swiglu else said.bias_gelu_fusion,
        window_size=said.window_size,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        tensor_model_parallel_size=said.tensor_model_parallel_size,
        pipeline_model_parallel_size=said.pipeline_model_parallel_size,
        pipeline_dtype=torch.float32,
    )
    torch.manual_seed(0)
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(qk_layernorm=said.qk_layernorm, normalization=said.normalization),
        vocab_size=said.padded_vocab_size,
        pre_process=first,
        post_process=last,
        max_sequence_length=said.max_position_embeddings,
        position_embedding_type=said.position_embedding_type,
        rotary_percent=said.rotary_percent,
        rotary_base=said.rotary_base,
        rope_scaling=said.use_rope_scaling,
        rope_scaling_factor=said.rope_scaling_factor,
        seq_len_interpolation_factor=said.rotary_seq_len_interpolation_factor,
        share_embeddings_and_output_weights=not said.untie_embeddings_and_output_weights,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too, so that nothing hides
            parameter += noise * torch.randn(parameter.shape)
    return model


TOKENS = np.random.RandomState(1).randint(V, size=(3, L)).astype(np.int32)
PLACES = np.broadcast_to(np.arange(L, dtype=np.int32), TOKENS.shape)


def their_logits(model) -> np.ndarray:
    import torch

    tokens, places = torch.from_numpy(TOKENS).long(), torch.from_numpy(PLACES.copy()).long()
    hidden_places = torch.triu(torch.ones(L, L, dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        return model(tokens, places, hidden_places).numpy()


def our_logits(model: schema.Model, params: dict[str, np.ndarray]) -> np.ndarray:
    tree = map_with_path(lambda path, leaf: params[path], count.abstract_params(model))
    batch = {"tokens": TOKENS, "positions": PLACES, "segment_ids": np.ones_like(TOKENS)}

    @jax.jit
    def program(tree):
        x_BLD, _ = transformer.hidden(model, tree, batch)
        return loss.chunk_logits(x_BLD.reshape(-1, model.d_model), transformer.head_kernel(model, tree), V).reshape(*TOKENS.shape, -1)

    return np.asarray(program(tree))


def error(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(a - b).max() / np.abs(b).max()


def saved(folder, judge, args: dict, rank: int = 0) -> None:
    import torch

    path = folder / megatron_ranks.rank_folder((rank, 0), 1) / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    state = {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "model": judge.state_dict_for_save_checkpoint()}
    torch.save(state, path)


def args_of(model: schema.Model, num_ranks: int = 1) -> dict:
    return megatron_args.write(model) | {
        "padded_vocab_size": V,
        "tensor_model_parallel_size": num_ranks,
        "pipeline_model_parallel_size": 1,
    }


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_its_checkpoint_computes_the_same(model, alone, tmp_path):
    judge = theirs(args_of(model))
    saved(tmp_path, judge, args_of(model))
    foreign = megatron.open_folder(tmp_path)
    assert error(our_logits(foreign.model, params_of(foreign)), their_logits(judge)) < 1e-5


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_it_takes_what_we_write(model, alone, tmp_path):
    import torch

    params = {path: 0.2 * rows + ("norm/scale" in path) for path, rows in random_params(model).items()}
    layout = megatron.layout_for(model, 1, 1)
    write_tree(tmp_path, layout, whole(params, layout), transformer_impl="local")
    state = torch.load(tmp_path / "release" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)
    judge = theirs(vars(state["args"]))
    judge.load_state_dict(state["model"])
    assert error(our_logits(model, params), their_logits(judge)) < 1e-5


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("model", [MODELS["gpt2"], MODELS["gated, with biases"], MANY_GROUPS])
def test_its_own_partition(model, num_ranks, tmp_path):
    """Each rank makes the whole of a tensor from one seed and keeps its part: put together they are what one rank alone makes."""
    for size in (1, num_ranks):
        for rank in range(size):
            with rank_of(rank, size, 0, 1):
                args = args_of(model, size)
                saved(tmp_path / str(size), theirs(args, noise=0.0), args, rank)
    assert_same(*(params_of(megatron.open_folder(tmp_path / str(size))) for size in (num_ranks, 1)))


@pytest.mark.parametrize(("num_ranks", "num_stages"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("model", [MODELS["gpt2"], MODELS["gated, with biases"], MANY_GROUPS])
def test_every_rank_takes_its_file(model, num_ranks, num_stages, tmp_path):
    import torch

    params, layout = random_params(model), megatron.layout_for(model, num_ranks, num_stages)
    write_tree(tmp_path, layout, whole(params, layout), num_ranks, num_stages, "local")
    for stage in range(num_stages):
        for rank in range(num_ranks):
            path = tmp_path / "release" / megatron_ranks.rank_folder((rank, stage), num_stages) / "model_optim_rng.pt"
            state = torch.load(path, weights_only=False)
            with rank_of(rank, num_ranks, stage, num_stages):
                judge = theirs(vars(state["args"]), 0.0, stage == 0, stage == num_stages - 1)
                judge.load_state_dict(state["model"])


def test_every_class_that_it_calls_safe_is_stood_for():
    from megatron.core.safe_globals import SAFE_GLOBALS

    names = {f"{one.__module__}.{one.__qualname__}" for one in SAFE_GLOBALS}
    assert {name for name in names if not name.startswith(megatron_file.MEGATRON)} <= megatron_file.KNOWN
