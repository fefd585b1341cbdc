"""Folders of tokens to other folders of tokens: several into one, or one into several."""

import dataclasses
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.core.schema import key
from mtnlg.corpus import split as splits
from mtnlg.corpus import tokens
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.factory import folder, passes
from mtnlg.factory.inputs import InputFile, stats
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.tokens.tokenize import listed

SIDES = ("train", "valid", "test")


@dataclass(frozen=True)
class Merge:
    """Writes the documents of several folders of tokens into one, in the order of the inputs; all must have the same tokenizer."""

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises ConfigError, DataError, MissingInput, and what `folder.Journal` raises."""
        return _run("merge", self, inputs, pathlib.Path(output), machine, self._write)

    def _write(self, stores: dict[str, Store], tokenizer: Tokenizer, path: pathlib.Path, tally: Tally) -> list[dict]:
        with tokens.writer(path / tokens.NAME, tokenizer) as writer:
            for store in stores.values():
                for number, chunk in enumerate(tokens.chunks(store)):
                    writer.extend(chunk.ids, chunk.lengths, 0 if number else store.sidecar["num_bytes"])
        tokenizer.save(path / tokens.TOKENIZER)
        return listed(path)


@dataclass(frozen=True)
class Split:
    """Writes the documents of a folder of tokens into the folders train, valid and test, by weight, each document into one of them."""

    weights: tuple[float, ...] = key((969.0, 30.0, 1.0), "of train, valid and perhaps test; each gets its share of the documents")

    def check(self) -> None:
        if not 2 <= len(self.weights) <= len(SIDES) or not all(0 < weight < float("inf") for weight in self.weights):
            raise ConfigError(
                f"weights={','.join(map(str, self.weights))} is out of range",
                "--weights",
                "two or three numbers above 0, as --weights=969,30,1",
            )

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises as `Merge.run`."""
        self.check()
        if len(inputs) != 1:
            raise ConfigError(f"{len(inputs)} inputs", "--input", "one folder of tokens, perhaps of python -m mtnlg data merge")
        return _run("split", self, inputs, pathlib.Path(output), machine, self._write)

    def _write(self, stores: dict[str, Store], tokenizer: Tokenizer, path: pathlib.Path, tally: Tally) -> list[dict]:
        (store,) = stores.values()
        side_of, found = sides(store.num_documents, self.weights), []
        for side, name in enumerate(SIDES[: len(self.weights)]):
            with tokens.writer(path / name / tokens.NAME, tokenizer) as writer:
                for chunk in tokens.chunks(store):
                    kept = chunk.only(side_of[chunk.numbers] == side)
                    writer.extend(kept.ids, kept.lengths, kept.num_bytes(tokenizer))
            tokenizer.save(path / name / tokens.TOKENIZER)
            made = Store(path / name / tokens.NAME)
            tally.count("documents of a part", name, made.num_documents)
            tally.count("tokens of a part", name, made.num_tokens)
            found += [part | {"name": f"{name}/{part['name']}"} for part in listed(path / name)]
        return found


def sides(num_documents: int, weights: tuple[float, ...]) -> np.ndarray:
    """int8 [num_documents]: the side of each document. Shares are exact (largest remainder); which documents, a hash of numbers says.

    Raises DataError when a side would be empty.
    """
    ideal = np.array(weights) / sum(weights) * num_documents
    counts = np.floor(ideal).astype(np.int64)
    counts[np.argsort(counts - ideal, kind="stable")[: num_documents - counts.sum()]] += 1
    if not counts.all():
        raise DataError(f"{num_documents} documents are too few for weights {weights}", "--weights", "other weights, or more documents")
    found = np.empty(num_documents, np.int8)
    found[np.argsort(tokens.hashes(num_documents), kind="stable")] = np.repeat(np.arange(len(weights)), counts)
    return found


def _run(name: str, options, inputs: tuple[str, ...], path: pathlib.Path, machine: Machine, write: Callable) -> Tally:
    """A stage that copies stores: killed, it begins again. write: makes the files, and gives what is known of them."""
    tokenizer = _tokenizer(inputs)
    stores = {one: tokens.open_store(source, tokenizer) for one, source in zip(splits.names(inputs), inputs, strict=True)}
    what = {"stage": name, "options": dataclasses.asdict(options), "inputs": [_identity(source) for source in inputs]}

    def make(tally: Tally) -> tuple[int, list[dict]]:
        for one, store in stores.items():
            counts = {"documents": store.num_documents, "bytes": store.sidecar["num_bytes"], "tokens": store.num_tokens}
            for unit, number in counts.items():
                tally.count(f"{unit} read", one, number)
                tally.count(f"{unit} written", one, number)  # all of them, somewhere
        return sum(store.num_documents for store in stores.values()), write(stores, tokenizer, path, tally)

    return passes.run_alone(path, what, machine, make)


def _tokenizer(inputs: tuple[str, ...]) -> Tokenizer:
    """That of all the inputs."""
    for source in inputs:
        tokens.require_folder(source, "--input")
    loaded = [tokenizers.load(pathlib.Path(source) / tokens.TOKENIZER) for source in inputs]
    if other := next((source for source, one in zip(inputs, loaded, strict=True) if one.sha256 != loaded[0].sha256), None):
        raise ConfigError(f"{other} has another tokenizer than {inputs[0]}", "--input", "folders of tokens of one tokenizer")
    return loaded[0]


def _identity(source: str) -> str:
    return folder.sha256(source) or stats([InputFile(source, file.id, file.path) for file in tokens.files(source)])
