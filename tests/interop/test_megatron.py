"""Megatron-LM's checkpoints as numpy arrays: parted by megatron_tree row by row, put together by the importer; and back."""

import dataclasses
import sys

import numpy as np
import pytest
from megatron_tree import CORE, GATED, GROUPED, LEGACY, OLD, OLDEST, ROWS, Tree, args_of, parted, random_params

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.interop import megatron, megatron_file, megatron_names, megatron_ranks
from mtnlg.interop.layout import BLOCKS, Layout, Tensor, axes

GRIDS = [(ranks, stages) for ranks in (1, 2, 4) for stages in (1, 2)]
KINDS = [
    (OLD, OLDEST, 0),
    (OLD, LEGACY, 1.0),
    (OLD, LEGACY, 2.0),
    (OLD, LEGACY, 3.0),
    (OLD, CORE, 3.0),
    (GATED, LEGACY, 2.0),
    (GROUPED, LEGACY, 3.0),
    (GROUPED, CORE, 3.0),
]


def assembled(tree: Tree, params=None, **args):
    """The importer's model of a tree, with other args than its own."""
    ranks = parted(random_params(tree.model) if params is None else params, tree)
    return megatron.assemble(args_of(tree) | args, tree.version, ranks, "here", tree.model.vocab_size)


def params_of(foreign) -> dict[str, np.ndarray]:
    """Every parameter, layers stacked."""
    keys = foreign.layout.keys()
    return {path: foreign.read_stacked(path, (slice(None),), None) for path in dict.fromkeys(key.path for key in keys)}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path, strict=True)


@pytest.mark.parametrize(("ranks", "stages"), GRIDS)
@pytest.mark.parametrize(("model", "names", "version"), KINDS)
def test_every_version_on_every_grid(model, names, version, ranks, stages):
    params = random_params(model)
    foreign = assembled(Tree(model, names, version, ranks, stages), params)
    assert foreign.model == dataclasses.replace(model, num_kv_heads=model.heads[1], head_dim=model.heads[2], d_ff=model.ff_dim)
    assert_same(params_of(foreign), params)


@pytest.mark.parametrize("model", [OLD, GATED, GROUPED])
def test_every_slice_is_a_slice_of_the_whole(model):
    """Of tensors that are several of ours, and of heads in groups."""
    foreign = assembled(Tree(model, LEGACY, 3.0, 2, 1))
    for key in list(foreign.layout.keys()):
        whole = foreign.read(key)
        for axis, letter in enumerate(axes(key.path)):
            for part in (slice(1, 2), slice(1, None, 2), slice(0, 0)) if letter != "2" else ():
                index = (*[slice(None)] * axis, part)
                np.testing.assert_array_equal(foreign.read(key, index), whole[index], err_msg=f"{key} {index}")


@pytest.mark.parametrize("version", [1.0, 2.0])
def test_the_version_matters(version):
    """Negative control: taken for another version, query, key and value come out wrong, and nothing else."""
    params, tree = random_params(OLD), Tree(OLD, LEGACY, 0, 2, 1)
    found = params_of(megatron.assemble(args_of(tree), version, parted(params, tree), "here", OLD.vocab_size))
    wrong = {path for path in params if not np.array_equal(params[path], found[path])}
    assert wrong == {path for path in params if "/query/" in path or "/key_value/" in path}


@pytest.mark.parametrize(("model", "names", "stages"), [(OLD, LEGACY, 1), (OLD, CORE, 2), (GROUPED, CORE, 2)])
def test_virtual_stages(model, names, stages):
    params = random_params(model)
    assert_same(params_of(assembled(Tree(model, names, 3.0, 2, stages, virtual=2), params)), params)


def test_stages_of_unequal_lengths():
    """Layers are counted, so that a stage may have more of them than another."""
    params = random_params(OLD)
    ranks = parted(params, Tree(OLD, CORE, 3.0, 1, 2))
    (first,), (last,) = ranks[0, 0], ranks[0, 1]
    for name in [name for name in first if name.startswith("decoder.layers.1.")]:  # the second stage gets one layer more at its start
        last_name = name.replace(".1.", ".0.", 1)
        last[name.replace(".1.", ".2.", 1)] = last.get(name)
        last[name], last[last_name] = last[last_name], first.pop(name)
    foreign = megatron.assemble(args_of(Tree(OLD, CORE, 3.0, 1, 2)), 3.0, ranks, "here", OLD.vocab_size)
    assert_same(params_of(foreign), params)


def with_fused_norms(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    norms = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_", "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"}
    renamed = {}
    for name, value in part.items():
        alone = next((norm for norm in norms if norm in name), None)
        renamed[name.replace(alone, norms[alone]) if alone else name] = value
    return renamed


def test_names_of_transformer_engine():
    """Its norms lie in the maps behind them, and it keeps states of its own."""
    params, tree = random_params(GROUPED), Tree(GROUPED, CORE, 3.0, 2, 1)
    ranks = {}
    for rank, (part,) in parted(params, tree).items():
        fused = with_fused_norms(part)
        assert fused.keys() != part.keys()
        nested = {**fused, "decoder.layers.0.mlp.linear_fc1._extra_state": None, "rotary_pos_emb.inv_freq": np.ones(3)}
        ranks[rank] = [dict(megatron_names.flat(nested))]
    assert_same(params_of(megatron.assemble(args_of(tree), 3.0, ranks, "here", GROUPED.vocab_size)), params)


def test_without_a_vocabulary_every_row_is_an_id():
    tree = Tree(OLD, CORE, 3.0, 1, 1)
    foreign = megatron.assemble(args_of(tree), 3.0, parted(random_params(OLD), tree), "here")
    assert foreign.model.vocab_size == ROWS
    assert params_of(foreign)["embedding/tokens"][ROWS - 1].any()


@pytest.mark.parametrize(
    "name", ["decoder.final_layernorm.weight", "decoder.layers.1.mlp.linear_fc2.bias", "embedding.position_embeddings.weight"]
)
def test_ranks_that_differ_in_what_all_of_them_hold(name):
    tree = Tree(OLD, CORE, 3.0, 2, 1)
    ranks = parted(random_params(OLD), tree)
    ranks[1, 0][0][name].reshape(-1)[0] += 1
    foreign = megatron.assemble(args_of(tree), 3.0, ranks, "here", OLD.vocab_size)
    with pytest.raises(DataError, match="tensor rank 1 should be the same numbers"):
        params_of(foreign)


@pytest.mark.parametrize("names", [LEGACY, CORE])
def test_a_copy_of_the_embedding_that_differs(names):
    tree = Tree(OLD, names, 3.0, 2, 2)
    ranks = parted(random_params(OLD), tree)
    ranks[1, 1][0][names["copy"]][0, 0] += 1
    foreign = megatron.assemble(args_of(tree), 3.0, ranks, "here", OLD.vocab_size)
    with pytest.raises(DataError, match="its copy for the head"):
        foreign.tensors.read("embedding.word_embeddings.weight")


def test_parts_that_do_not_fit_together():
    tree = Tree(OLD, CORE, 3.0, 2, 2)

    def broken(change) -> str:
        ranks = parted(random_params(OLD), tree)
        change(ranks)
        with pytest.raises(DataError) as caught:
            params_of(megatron.assemble(args_of(tree), 3.0, ranks, "here", OLD.vocab_size))
        return str(caught.value)

    fc1 = "decoder.layers.0.mlp.linear_fc1.weight"
    assert "parts that do not fit" in broken(lambda ranks: ranks[0, 0][0].update({fc1: ranks[0, 0][0][fc1][1:]}))
    assert "differ in having" in broken(lambda ranks: ranks[1, 0][0].pop(fc1))
    assert "64, 16] is wanted" in broken(lambda ranks: [ranks[rank, 0][0].update({fc1: ranks[rank, 0][0][fc1][1:]}) for rank in (0, 1)])
    assert f"{fc1}: missing" in broken(lambda ranks: [ranks[rank, 0][0].pop(fc1) for rank in (0, 1)])
    assert "nothing in this architecture" in broken(lambda ranks: [ranks[rank, 1][0].update(bias=np.ones(3)) for rank in (0, 1)])
    assert "float32" in broken(lambda ranks: [ranks[rank, 0][0].update({fc1: ranks[rank, 0][0][fc1].astype(float)}) for rank in (0, 1)])
    assert "virtual stages" in broken(lambda ranks: ranks[1, 1].append({}))
    assert "num_layers=4: 3 are there" in broken(
        lambda ranks: [ranks[rank, 1][0].pop(name) for rank in (0, 1) for name in list(ranks[rank, 1][0]) if ".layers.1." in name]
    )
    assert "same meaning" in broken(lambda ranks: ranks[0, 0][0].update({"language_model.embedding.word_embeddings.weight": np.ones(1)}))
    assert "no matrix" in broken(
        lambda ranks: [ranks[rank, 0][0].update({"embedding.word_embeddings.weight": np.ones(())}) for rank in (0, 1)]
    )
    assert "first stage" in broken(lambda ranks: [ranks[rank, 0][0].pop("embedding.word_embeddings.weight") for rank in (0, 1)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 8),
        ("multi_latent_attention", True),
        ("apply_layernorm_1p", True),
        ("squared_relu", True),
        ("position_embedding_type", "yarn"),
        ("normalization", "BatchNorm"),
        ("rotary_interleaved", True),
        ("window_size", (4, 4)),
        ("window_size", 4),
        ("window_attn_skip_freq", 2),
        ("qk_layernorm", True),
        ("mtp_num_layers", 1),
        ("hidden_size", -3),
        ("hidden_size", "16"),
        ("num_attention_heads", None),
        ("layernorm_epsilon", float("nan")),
        ("swiglu", "yes"),
        ("padded_vocab_size", 128),
        ("tensor_model_parallel_size", 2),
        ("kv_channels", 10**30),
    ],
)
def test_settings_that_cannot_be_honoured(key, value):
    with pytest.raises(DataError, match=key if key != "kv_channels" else "linear_qkv"):
        assembled(Tree(OLD, CORE, 3.0, 1, 1), **{key: value})


def test_all_of_them_at_once():
    with pytest.raises(DataError, match=r"(?s)num_experts=8.*rotary_interleaved=True.*softmax_type='learnable'"):
        assembled(Tree(OLD, CORE, 3.0, 1, 1), num_experts=8, rotary_interleaved=True, softmax_type="learnable")


def test_versions_that_are_not_known_or_have_no_groups():
    tree = Tree(OLD, CORE, 4.0, 1, 1)
    with pytest.raises(DataError, match="checkpoint version 4.0"):
        assembled(tree)
    with pytest.raises(DataError, match="as many groups as heads"):
        assembled(tree._replace(version=1.0), group_query_attention=True, num_query_groups=2)


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({}, {"activation": "gelu", "position": "learned", "bias_qkv": True, "tie_embeddings": True}),
        ({"bias_gelu_fusion": False}, {"activation": "gelu_exact"}),
        ({"onnx_safe_gelu": True}, {"activation": "gelu_exact"}),
        ({"openai_gelu": True, "bias_gelu_fusion": False}, {"activation": "gelu"}),
        ({"add_bias_linear": False}, {"activation": "gelu_exact", "bias_qkv": False, "bias_mlp": False, "bias_norm": True}),
        ({"add_bias_linear": False, "add_qkv_bias": True}, {"bias_qkv": True, "bias_attention_output": False}),
        ({"use_rotary_position_embeddings": True, "rotary_percent": 0.5}, {"position": "rope", "rope_fraction": 0.5}),
        ({"position_embedding_type": "rope", "use_rope_scaling": True}, {"rope_scaling": "llama3", "rope_scaling_factor": 8.0}),
        (
            {"position_embedding_type": "rope", "rotary_seq_len_interpolation_factor": 2},
            {"rope_scaling": "linear", "rope_scaling_factor": 2.0},
        ),
        ({"add_position_embedding": False}, {"position": "none"}),
        ({"position_embedding_type": "none"}, {"position": "none"}),
        ({"window_size": (3, 0)}, {"sliding_window": 4}),
        ({"window_size": [-1, 0]}, {"sliding_window": None}),
        ({"norm_epsilon": 1e-6, "layernorm_epsilon": 1e-5}, {"norm_eps": 1e-6}),
        ({"num_query_groups": 1}, {"num_kv_heads": 4}),
        ({"group_query_attention": True, "num_query_groups": 2}, {"num_kv_heads": 2}),
    ],
)
def test_settings(args, wanted):
    settings = megatron.Settings(args_of(Tree(OLD, CORE, 3.0, 1, 1)) | args)
    model = megatron.megatron_args.read(settings, ROWS, None)
    assert settings.problems == []
    assert {key: getattr(model, key) for key in wanted} == wanted


def whole(params: dict[str, np.ndarray], layout: Layout):
    """The `read` of `megatron.parts`."""

    def read(tensor: Tensor, layer: int | None) -> np.ndarray:
        def blocks(key):
            yield 0, params[key.path] if key.layer is None else params[key.path][key.layer]

        return layout.theirs(blocks, tensor, layer, np.float32)

    assert all(key.path.startswith(BLOCKS) == (key.layer is not None) for key in layout.keys())  # noqa: SIM118 (not a dict's)
    return read


def write_tree(root, layout: Layout, read, *grid, **options) -> None:
    for name, save in megatron.parts(layout, read, *grid, **options).items():
        save(root / name)
    megatron.finish(root)


@pytest.mark.parametrize(("ranks", "stages"), GRIDS)
@pytest.mark.parametrize("impl", megatron.IMPLS)
@pytest.mark.parametrize("model", [OLD, GATED, GROUPED])
def test_out_and_in_again(model, impl, ranks, stages, tmp_path, monkeypatch):
    """Without torch: what the files would hold is the tree that megatron_tree makes, and comes back as the same bits."""
    files = {}
    monkeypatch.setattr(megatron_file, "save", lambda path, args, arrays, named_by: files.update({path: (args, arrays)}))
    params, layout = random_params(model), megatron.layout_for(model, ranks, stages)
    write_tree(tmp_path, layout, whole(params, layout), ranks, stages, impl)
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "release"
    wanted = parted(params, Tree(model, CORE, 3.0, ranks, stages))
    found = {}
    for rank in wanted:
        args, arrays = files[tmp_path / "release" / megatron_ranks.rank_folder(rank, stages) / "model_optim_rng.pt"]
        found[rank] = [arrays]
        if impl == "transformer_engine":
            wanted[rank] = [with_fused_norms(wanted[rank][0])]
        assert arrays.keys() == wanted[rank][0].keys()
        for name, value in arrays.items():
            if "word_embeddings" not in name and "output_layer" not in name:  # whose padding is another
                np.testing.assert_array_equal(value, wanted[rank][0][name], err_msg=name)
    assert len(files) == ranks * stages
    assert args["padded_vocab_size"] == 128 * ranks
    foreign = megatron.assemble(args, 3.0, found, "here", model.vocab_size)
    assert foreign.model.position == model.position
    assert_same(params_of(foreign), params)


@pytest.mark.parametrize(
    ("changes", "ranks", "stages", "told"),
    [
        ({"position": "alibi"}, 1, 1, "model.position=alibi"),
        ({"parallel_residual": True}, 1, 1, "model.parallel_residual=True"),
        ({"position_offset": 2}, 1, 1, "model.position_offset=2"),
        ({"activation": "relu"}, 1, 1, "model.activation=relu"),
        ({"bias_mlp": False}, 1, 1, "model.bias_mlp=False"),
        ({"bias_qkv": False, "bias_mlp": False, "bias_attention_output": False}, 1, 1, "model.activation=gelu, there gelu_exact"),
        ({"qk_norm": True}, 1, 1, "qk_layernorm"),
        ({"bias_norm": False}, 1, 1, "model.bias_norm=False"),
        ({"num_kv_heads": 2}, 4, 1, "2 key/value heads do not divide by 4"),
        ({}, 3, 1, "4 heads do not divide by 3"),
        ({}, 1, 3, "4 layers do not divide by 3"),
        ({"position": "rope", "rope_scaling": "llama3", "rope_low_freq_factor": 2.0}, 1, 1, "model.rope_low_freq_factor=2.0"),
    ],
)
def test_models_that_megatron_cannot_have(changes, ranks, stages, told):
    with pytest.raises(ConfigError, match=told):
        megatron.layout_for(dataclasses.replace(OLD, **changes), ranks, stages)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu_exact"},
        {"activation": "gelu_exact", "bias_qkv": False, "bias_mlp": False, "bias_attention_output": False},
        {"position": "rope", "rope_scaling": "llama3"},
        {"position": "rope", "rope_scaling": "linear", "rope_scaling_factor": 3.0},
        {"position": "rope", "rope_fraction": 0.5, "sliding_window": 5},
        {"position": "none", "num_kv_heads": 2},
    ],
)
def test_models_that_it_can_have(changes):
    megatron.layout_for(dataclasses.replace(OLD, **changes), 2, 2)


def test_a_published_model():
    """MT-NLG 530B on its own grid."""
    model = schema.Model(num_layers=105, d_model=20480, num_heads=128, vocab_size=50257, seq_len=2048)
    assert megatron.layout_for(model, 8, 35).num_ids == 51200


def test_folders(tmp_path):
    """The tracker, a folder of one iteration, and what is no checkpoint of this kind."""
    for name in ("iter_0000012/mp_rank_00_000", "iter_0000012/mp_rank_00_001", "release/mp_rank_00"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model_optim_rng.pt").touch()
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    with pytest.raises(MissingInput, match="no Megatron-LM checkpoint"):
        megatron_ranks.files_of(megatron_ranks.find(tmp_path))
    for word, ranks in (("12\n", {(0, 0), (0, 1)}), ("release", {(0, 0)})):
        tracker.write_text(word)
        assert megatron_ranks.files_of(megatron_ranks.find(tmp_path)).keys() == ranks
    assert megatron_ranks.find(tmp_path / "release") == tmp_path / "release"
    for word in ("../../etc", "", "1e5", "9" * 5000, "\x00"):
        tracker.write_text(word)
        with pytest.raises((DataError, MissingInput)):
            megatron_ranks.files_of(megatron_ranks.find(tmp_path))


def test_ranks_that_are_not_there(tmp_path):
    def refused(*names: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "model_optim_rng.pt").touch()
        with pytest.raises((DataError, MissingInput)) as caught:
            megatron_ranks.files_of(folder)
        return str(caught.value)

    assert "1 of 2 x 2 ranks" in refused("mp_rank_00_000", "mp_rank_01_000", "mp_rank_01_001")
    assert "the same rank" in refused("mp_rank_00", "mp_rank_00_000")
    assert "experts" in refused("mp_rank_00_000_003")
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / ".metadata").touch()
    with pytest.raises(DataError, match="--ckpt-convert-format torch"):
        megatron_ranks.files_of(tmp_path / "distributed")


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "mp_rank_00").mkdir()
    (tmp_path / "mp_rank_00" / "model_optim_rng.pt").touch()
    with pytest.raises(ConfigError, match=r"torch \(megatron\)\. Try: pip install -e '\.\[megatron\]'"):
        megatron.open_folder(tmp_path)
    params, layout = random_params(OLD), megatron.layout_for(OLD, 1, 1)
    with pytest.raises(ConfigError, match="megatron"):
        write_tree(tmp_path / "out", layout, whole(params, layout))
    assert not (tmp_path / "out").exists()


def test_dicts_that_hold_themselves():
    inside = {"weight": 1, "_extra_state": 2}
    inside["self"] = {"again": inside, "bias": 3}
    assert dict(megatron_names.flat({"a": inside, "b": inside})) in ({"b.weight": 1, "b.self.bias": 3}, {"a.weight": 1, "a.self.bias": 3})
    deep: dict = {}
    for _ in range(3000):
        deep = {"x": deep}
    assert dict(megatron_names.flat(deep)) == {}
