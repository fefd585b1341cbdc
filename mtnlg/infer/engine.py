"""Generation over token ids: prefill a batch of prompts, then one token a step, the cache updated in place."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.core.tree import cast
from mtnlg.infer.sampling import Sampling, sample
from mtnlg.model import cache as caches
from mtnlg.parallel import mesh as meshes


class Request(NamedTuple):
    """One prompt and how to continue it. temperature 0 is greedy; top_k 0 and top_p 1 allow everything."""

    prompt: Sequence[int]
    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0


def refuse_stages(config: schema.Config) -> None:
    """Raises ConfigError for a mesh with pipeline stages: before weights are read for it."""
    if config.mesh.pipe > 1:
        what = f"mesh.pipe={config.mesh.pipe}: text is generated without pipeline stages, whatever the model was trained on"
        raise ConfigError(what, "--config.mesh.pipe", "python -m mtnlg generate --workdir=RUN, which lays the weights out on one device")


class Engine:
    """A model ready to generate: parameters in the compute dtype and the two compiled programs, over the samples and tensor axes."""

    def __init__(self, config: schema.Config, mesh: Mesh, params, num_ids: int | None = None):
        """num_ids: only ids below it are read and drawn, for a tokenizer smaller than the model; none: the model's vocabulary.

        Raises ConfigError for a mesh with pipeline stages.
        """
        refuse_stages(config)
        self.config, self.mesh = config, mesh
        self.num_ids = num_ids = num_ids or config.model.vocab_size
        self.dtype = jnp.dtype(config.train.compute_dtype)
        # With ZeRO 0 they are stored as they are computed with, and stay where they are. (jax.jit would copy them.)
        whole = config.mesh.zero == 0
        self._compute_params = functools.partial(cast, dtype=self.dtype) if whole else jax.jit(spmd.compute_params(config, mesh))
        self.load(params)
        prefill, decode_step = spmd.prefill(config, mesh), spmd.decode_step(config, mesh)

        def first(params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache, sampling, lengths_B):
            logits_BV, cache = prefill(params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache)
            return sample(logits_BV[:, :num_ids], sampling, lengths_B), cache

        def following(params, tokens_B, positions_B, cache, sampling):
            logits_BV, cache = decode_step(params, tokens_B, positions_B, cache)
            return sample(logits_BV[:, :num_ids], sampling, positions_B + 1), positions_B + 1, cache

        everywhere = NamedSharding(mesh, P())
        in_place = jax.tree.map(lambda spec: NamedSharding(mesh, spec), spmd.CACHE, is_leaf=lambda x: isinstance(x, P))
        self._first = jax.jit(first, donate_argnums=5, out_shardings=(everywhere, in_place))
        self._following = jax.jit(following, donate_argnums=3, out_shardings=(everywhere, everywhere, in_place))
        self._empty = jax.jit(self._empty_cache, static_argnums=(0, 1), out_shardings=in_place)

    def _empty_cache(self, num_rows: int, num_slots: int):
        return caches.empty(self.config.model, num_rows, num_slots, self.dtype, self.config.mesh.tensor)

    def load(self, params) -> None:
        """Takes other weights of the same model; the compiled programs stay."""
        self.params = self._compute_params(params)

    def unload(self) -> None:
        """Lets the weights go; `load` brings others."""
        self.params = None

    def check(self, request: Request) -> None:
        """Raises ConfigError for a request that the model cannot honour."""
        limit, longest = self.config.model.seq_len, len(request.prompt) + request.max_new_tokens
        if not request.prompt:
            raise ConfigError("the prompt has no tokens", "prompt", "at least one token; the end-of-document token starts afresh")
        self.check_ids(request.prompt, "prompt")
        if self.config.model.position == "learned" and longest > limit:
            cure = f"at most {limit - len(request.prompt)} new tokens" if len(request.prompt) < limit else "a shorter prompt"
            raise ConfigError(
                f"{len(request.prompt)} tokens of prompt and {request.max_new_tokens} new ones exceed the {limit} learned positions",
                "prompt",
                cure,
            )
        legal = {
            "max_new_tokens": (request.max_new_tokens >= 1, "1 or more"),
            "temperature": (0 <= request.temperature < math.inf, "0 (greedy) or more"),
            "top_k": (0 <= request.top_k < 2**31, "0 (all) or more"),
            "top_p": (0 < request.top_p <= 1, "more than 0, at most 1"),
            "seed": (0 <= request.seed < 2**32, f"0 to {2**32 - 1}"),
        }
        for name, (good, cure) in legal.items():
            if not good:
                raise ConfigError(f"{name}={getattr(request, name)} is out of range", name, cure)

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Raises ConfigError for ids that the model, or its tokenizer, does not have."""
        if max(ids) >= self.num_ids or min(ids) < 0:
            raise ConfigError(f"the {name} has ids beyond the vocabulary of {self.num_ids}", name)

    def stream(self, requests: Sequence[Request]) -> Iterator[np.ndarray]:
        """Yields the new tokens of all rows [B] int32, step after step, up to the longest request; stop by closing the iterator."""
        for request in requests:
            self.check(request)
        if not requests:
            return
        asked = len(requests)
        requests = [*requests, *[requests[0]] * (-asked % self.config.mesh.num_sample_shards)]  # as many rows on each device
        lengths_B = np.array([len(r.prompt) for r in requests], np.int32)
        # Lengths are rounded up so that prompts of like length share one compiled program.
        width, steps = rounded_up(int(lengths_B.max())), max(r.max_new_tokens for r in requests)
        slots = rounded_up(width + steps)
        places_L = np.arange(width, dtype=np.int32)
        real_BL = places_L < lengths_B[:, None]
        tokens_BL = np.zeros((len(requests), width), np.int32)
        for row, request in enumerate(requests):
            tokens_BL[row, : len(request.prompt)] = request.prompt
        positions_BL = np.where(real_BL, places_L, 0).astype(np.int32)
        slots_BL = np.where(real_BL, places_L, slots).astype(np.int32)  # padding is dropped
        dtypes = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "seed": np.uint32}
        fields = {name: np.array([getattr(r, name) for r in requests], dtype) for name, dtype in dtypes.items()}
        sampling = Sampling(**meshes.put(self.mesh, fields, P()))
        read = {"tokens": tokens_BL, "positions": positions_BL, "segment_ids": real_BL.astype(np.int32), "slots": slots_BL}
        read = meshes.put(self.mesh, read, P())
        positions_B = meshes.put(self.mesh, {"lengths": lengths_B}, P())["lengths"]
        tokens_B, cache = self._first(self.params, *read.values(), self._empty(len(requests), slots), sampling, positions_B)
        yield np.asarray(tokens_B)[:asked]
        for _ in range(steps - 1):
            tokens_B, positions_B, cache = self._following(self.params, tokens_B, positions_B, cache, sampling)
            yield np.asarray(tokens_B)[:asked]

    def generate(self, requests: Sequence[Request], stop_ids: Sequence[int] = ()) -> list[list[int]]:
        """The new ids of each request, without the stop id that ended it."""
        outputs: list[list[int]] = [[] for _ in requests]
        going = [True] * len(requests)
        for tokens_B in self.stream(requests):
            for row, request in enumerate(requests):
                if going[row] and int(tokens_B[row]) in stop_ids:
                    going[row] = False
                elif going[row]:
                    outputs[row].append(int(tokens_B[row]))
                    going[row] = len(outputs[row]) < request.max_new_tokens
            if not any(going):
                break
        return outputs


def rounded_up(length: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (length - 1).bit_length())
