"""How an architecture's tensors hold our parameters: described once, read in both directions.

A tensor is made of parts, each one parameter of ours in one layer, whose axes lie in the order of a pattern: "H K | D" is an array
[H, K, D] that the file has as [H*K, D]; without `|` all its axes are one. Several parts are joined along axis `join` of their patterns.
R are the query heads of one key/value head (H = G*R), 1 an axis of one.

Everything is done by views, so that a slice is read from a memory-mapped file without the rest. A tensor that is read is sliced once,
in rows and columns, before anything else: it may be one whose numbers are only then made (`gguf_file.Quantised`).
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mtnlg.core import schema

AXES = {  # of one layer of each parameter; docs/design.md, "The parameter tree"
    "embedding/tokens": "V D",
    "embedding/positions": "P D",
    "attention/query/kernel": "D H K",
    "attention/query/bias": "H K",
    "attention/key_value/kernel": "D G 2 K",
    "attention/key_value/bias": "G 2 K",
    "attention/output/kernel": "H K D",
    "mlp/up/kernel": "D F",
    "mlp/up/bias": "F",
    "mlp/gate/kernel": "D F",
    "mlp/gate/bias": "F",
    "mlp/down/kernel": "F D",
    "attention/query_norm/scale": "K",
    "attention/key_norm/scale": "K",
    "head/kernel": "D V",
}
BLOCKS = "blocks/"


class Part(NamedTuple):
    """A parameter of ours in a tensor of theirs. path: without `blocks/` in a layer; which: 0 key or 1 value, of key_value."""

    path: str
    pattern: str
    which: int | None = None


class Tensor(NamedTuple):
    """A tensor of theirs. name: with {layer} where each block has one."""

    name: str
    parts: tuple[Part, ...]
    join: int = 0

    @property
    def in_layers(self) -> bool:
        return "{layer}" in self.name


class Key(NamedTuple):
    """One layer of one parameter of ours; layer None: outside the blocks."""

    path: str
    layer: int | None


def axes(path: str) -> list[str]:
    """The letters of one layer of a parameter; norms and biases into the residual stream have D."""
    return AXES.get(path.removeprefix(BLOCKS), "D").split()


class Layout:
    """An architecture's tensors for one model. num_ids: rows of their vocabulary; None: the model's, without padding."""

    def __init__(self, model: schema.Model, tensors: tuple[Tensor, ...], num_ids: int | None = None):
        num_heads, num_groups, head_dim = model.heads
        self.model, self.tensors = model, tensors
        self.num_ids = num_ids or model.vocab_size
        self._sizes = {"D": model.d_model, "H": num_heads, "G": num_groups, "K": head_dim, "R": num_heads // num_groups, "F": model.ff_dim}
        self._sizes |= {"P": model.seq_len + model.position_offset, "V": self.num_ids, "1": 1, "2": 2}
        self._holders: dict[str, list[tuple[Tensor, Part]]] = {}
        for tensor in tensors:
            for part in tensor.parts:
                self._holders.setdefault(BLOCKS * tensor.in_layers + part.path, []).append((tensor, part))

    def keys(self) -> Iterator[Key]:
        """Every layer of every parameter, in the order in which a forward needs them."""
        inside = [path for path in self._holders if path.startswith(BLOCKS)]
        outside = [path for path in self._holders if path not in inside]
        first = [path for path in outside if path.startswith("embedding")]
        yield from (Key(path, None) for path in first)
        yield from (Key(path, layer) for layer in range(self.model.num_layers) for path in inside)
        yield from (Key(path, None) for path in outside if path not in first)

    def names(self) -> Iterator[tuple[Tensor, int | None]]:
        """Every tensor, with its layer, in the same order."""
        before = [tensor for tensor in self.tensors if not tensor.in_layers and tensor.parts[0].path.startswith("embedding")]
        inside = [tensor for tensor in self.tensors if tensor.in_layers]
        yield from ((tensor, None) for tensor in before)
        yield from ((tensor, layer) for layer in range(self.model.num_layers) for tensor in inside)
        yield from ((tensor, None) for tensor in self.tensors if not tensor.in_layers and tensor not in before)

    def tensors_of(self, path: str) -> list[Tensor]:
        """Those that hold a parameter of ours."""
        return [tensor for tensor, _ in self._holders[path]]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name: shape} of every tensor."""
        return {name_of(tensor, layer): self.shape(tensor) for tensor, layer in self.names()}

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Of a tensor, as the file has it."""
        joined, cut = self._joined(tensor)
        return tuple(math.prod(dims) for dims in ((joined[:cut], joined[cut:]) if cut else (joined,)))

    def our_shape(self, path: str) -> tuple[int, ...]:
        """Of one layer of a parameter, the vocabulary padded."""
        return tuple(self.model.padded_vocab_size if axis == "V" else self._sizes[axis] for axis in axes(path))

    def ours(self, read: Callable[[str], np.ndarray], key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        """A slice of one layer of a parameter, made of the tensors that hold it; rows that they do not have are zeros.

        index: a slice for each of the first axes of the layer; dtype: None: that of the tensor.
        """
        wanted = axes(key.path)
        index = tuple(part.indices(size) for part, size in zip(index, self.our_shape(key.path), strict=False))
        index += tuple((0, size, 1) for size in self.our_shape(key.path)[len(index) :])
        made = None
        for tensor, part in self._holders[key.path]:
            into, taken = [], {}
            for letter, (start, stop, step) in zip(wanted, index, strict=True):
                if letter == "2" and part.which is not None:
                    into.append(part.which - start)
                    continue
                if letter == "V":  # beyond the vocabulary lies padding
                    stop = min(stop, self.num_ids, self.model.vocab_size)
                into.append(slice(0, len(range(start, stop, step))))
                taken[letter] = slice(start, max(stop, start), step)
            heads = taken.pop("H", None) if "R" in part.pattern else None
            view = self._as_ours(read(name_of(tensor, key.layer)), tensor, part, taken)
            if heads:
                at = axes(key.path).index("H")
                view = view.reshape(*view.shape[:at], self._sizes["H"], *view.shape[at + 2 :])[(slice(None),) * at + (heads,)]
            if made is None:
                made = np.zeros([len(range(*one)) for one in index], dtype or view.dtype)
            made[tuple(into)] = view
        return made

    def theirs(self, blocks: Callable[[Key], Iterator[tuple[int, np.ndarray]]], tensor: Tensor, layer: int | None, dtype) -> np.ndarray:
        """A whole tensor, made of ours. blocks: a key -> (where on the first axis it begins, rows from there on), as many as there are."""
        made = np.zeros(self.shape(tensor), dtype)
        for part in tensor.parts:
            key = Key(BLOCKS * tensor.in_layers + part.path, layer)
            view, letters = self._as_ours(made, tensor, part, {}), axes(key.path)
            for start, rows in blocks(key):
                if part.which is not None:
                    rows = rows[(slice(None),) * letters.index("2") + (part.which,)]
                if letters[0] == "V":
                    rows = rows[: max(self.num_ids - start, 0)]
                elif letters[-1] == "V":
                    rows = rows[:, : self.num_ids]
                place = view if letters[0] == "H" and "R" in part.pattern else view[start : start + rows.shape[0]]
                place = place[:, : rows.shape[1]] if letters[-1] == "V" else place
                place[...] = rows.reshape(place.shape)
        return made

    def _sizes_of(self, pattern: str) -> list[int]:
        return [self._sizes[axis] for axis in pattern.replace("|", " ").split()]

    def _joined(self, tensor: Tensor) -> tuple[list[int], int]:
        """(sizes of all axes of the joined parts, how many of them are before the cut or 0)."""
        sizes = [self._sizes_of(part.pattern) for part in tensor.parts]
        joined = list(sizes[0])
        joined[tensor.join] = sum(one[tensor.join] for one in sizes)
        pattern = tensor.parts[0].pattern
        return joined, len(pattern.split("|")[0].split()) if "|" in pattern else 0

    def _as_ours(self, array, tensor: Tensor, part: Part, taken: dict[str, slice]) -> np.ndarray:
        """The view of a tensor that is one part, its axes in our order (H in two, G and R, where the pattern has R; without the 2).

        taken: what is wanted of an axis, by its letter; all of those that it leaves out.
        """
        joined, cut = self._joined(tensor)
        before = sum(self._sizes_of(one.pattern)[tensor.join] for one in tensor.parts[: tensor.parts.index(part)])
        letters = part.pattern.replace("|", " ").split()
        own = [taken.get(letter, slice(0, self._sizes[letter], 1)) for letter in letters]
        own[tensor.join] = slice(own[tensor.join].start + before, own[tensor.join].stop + before, own[tensor.join].step)
        box, sizes = [], list(joined)  # of merged axes, the first one only is sliced before they are parted
        for first, end in ((0, cut), (cut, len(letters))) if cut else ((0, len(letters)),):
            start, stop, step = own[first].start, own[first].stop, own[first].step
            inner = math.prod(joined[first + 1 : end])
            box.append(slice(start * inner, stop * inner))
            sizes[first], own[first] = stop - start, slice(None, None, step)
        view = array[tuple(box)].reshape(sizes)[tuple(own)]
        view = view[tuple(0 if letter == "1" else slice(None) for letter in letters)]
        letters = [letter for letter in letters if letter != "1"]
        ours = [letter for letter in axes(part.path) if part.which is None or letter != "2"]
        ours = [one for letter in ours for one in (("G", "R") if letter == "H" and "R" in letters else (letter,))]
        return view.transpose([letters.index(letter) for letter in ours])


def linear(name: str, path: str, pattern: str, bias: bool = True, which: int | None = None) -> Iterator[Tensor]:
    """NAME.weight and NAME.bias of a linear map that is one parameter of ours; the pattern is the weight's."""
    yield Tensor(f"{name}.weight", (Part(f"{path}/kernel", pattern, which),))
    if bias:
        yield Tensor(f"{name}.bias", (Part(f"{path}/bias", " ".join(axis for axis in axes(f"{path}/bias") if axis != "2"), which),))


def norm(name: str, path: str, bias: bool = True) -> Iterator[Tensor]:
    """NAME.weight and NAME.bias of a norm."""
    yield Tensor(f"{name}.weight", (Part(f"{path}/scale", " ".join(axes(f"{path}/scale"))),))
    if bias:
        yield Tensor(f"{name}.bias", (Part(f"{path}/bias", "D"),))


def name_of(tensor: Tensor, layer: int | None) -> str:
    """The tensor's name in the file."""
    return tensor.name.format(layer=layer)
