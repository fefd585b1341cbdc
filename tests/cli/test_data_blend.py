"""What a blend means for a run: MT-NLG's own table of epochs, from its tokens and weights."""

import re

import pytest

from mtnlg.cli.main import main
from mtnlg.corpus import manifest
from mtnlg.corpus.manifest import Prepared, PreparedSource, PreparedStore
from mtnlg.data.store import StoreWriter

MTNLG = ["--config=configs/mtnlg_530b.py", "--tokens=configs/data/mtnlg_tokens.json"]
# (epochs as published with one decimal; by arithmetic, 270 B x weight / tokens) of arXiv 2201.11990, table 2. The tokens are published
# with one decimal too, in B, so that the small sets' own epochs are off by more than their last digit.
EPOCHS = {
    "Books3": (1.5, 1.51),
    "OpenWebText2": (3.6, 3.53),
    "StackExchange": (1.4, 1.32),
    "PubMedAbstracts": (1.8, 1.78),
    "Wikipedia": (3.2, 3.07),
    "Gutenberg": (0.9, 0.87),
    "BookCorpus2": (1.8, 1.81),
    "NIHExPorter": (1.8, 1.87),
    "ArXiv": (0.2, 0.18),
    "GitHub": (0.2, 0.18),
    "Pile-CC": (0.5, 0.51),
    "CC-2020-50": (0.5, 0.51),
    "CC-2021-04": (0.5, 0.51),
    "RealNews": (1.1, 1.10),
    "CC-Stories": (0.5, 0.44),
}


def table(arguments, capsys):
    """{source: {column: cell}} of what is printed."""
    assert main(["data", "blend", *arguments]) == 0
    head, *rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()[2:-2]]
    return {row[0]: dict(zip(head, row, strict=False)) for row in rows}


def test_the_epochs_of_mtnlg(capsys):
    rows = table(MTNLG, capsys)
    assert [name for name in rows if name != "all"] == list(EPOCHS)
    for name, (published, derived) in EPOCHS.items():
        assert float(rows[name]["epochs"]) == derived, name
        assert abs(derived - published) <= 0.135, name
    assert rows["all"]["epochs"] == "0.80" and rows["all"]["tokens"] == "338.6 B"
    assert rows["OpenWebText2"]["sampling"] == "4.42 x over" and rows["GitHub"]["sampling"] == "0.22 x under"


def test_weights_by_tokens_are_even(capsys, tmp_path):
    """And the samples of every source add up to those of the run, steps x batch."""
    config = [f"--config.data.source={tmp_path}/a.txt,{tmp_path}/b.txt", "--config.train.num_steps=100", "--config.train.batch_size=8"]
    rows = table(["--config=configs/demo.py", "--tokens=3M,1M", *config], capsys)
    assert [row["sampling"] for row in rows.values() if "sampling" in row] == ["1.00 x even"] * 2
    assert [rows[name]["samples"] for name in ("a", "b", "all")] == ["600", "200", "800"]
    assert float(rows["a"]["epochs"]) == pytest.approx(600 * 256 / 3e6, abs=0.005)


def test_tokens_of_stores(capsys, tmp_path):
    with StoreWriter(tmp_path / "a", tokenizer_sha256="", vocab_size=100) as writer:
        writer.add(range(50))
    rows = table(["--config=configs/demo.py", f"--tokens={tmp_path / 'a'}"], capsys)
    assert rows["python"]["tokens"] == "50"


def test_tokens_of_a_prepared_folder(capsys, tmp_path):
    def store(name, num_tokens):
        return PreparedStore(tmp_path / name, num_tokens, 10, 1, "", "")

    sources = tuple(
        PreparedSource(name, store(f"{name}.train", n), store(f"{name}.heldout", 1), {}) for name, n in (("a", 600), ("b", 200))
    )
    manifest.write(tmp_path, Prepared(tmp_path / "tokenizer", sources), {})
    config = ["--config=configs/demo.py", f"--config.data.directory={tmp_path}"]
    rows = table([*config, "--config.data.source=x/a.txt,x/b.txt", "--config.data.weights=1,1"], capsys)
    assert rows["a"]["sampling"] == "0.67 x under" and rows["b"]["sampling"] == "2.00 x over"
    assert main(["data", "blend", *config]) == 2
    assert "a, b are prepared there, and the config names python" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "code", "said"),
    [
        ([], 2, "nobody says how many tokens there are"),
        (["--tokens=3M,4M"], 2, "2 counts for 1 sources: python"),
        (["--tokens=many"], 2, "'many' is neither a number of tokens nor a store"),
        (["--tokens=0"], 2, "'0' is neither"),
        (["--tokens=nowhere.json"], 66, "cannot be read"),
        (["--tokens=configs/data/mtnlg_tokens.json"], 65, "nothing is said about source 'python'"),
    ],
)
def test_what_cannot_be_counted(tokens, code, said, capsys):
    assert main(["data", "blend", "--config=configs/demo.py", *tokens]) == code
    assert said in capsys.readouterr().err
