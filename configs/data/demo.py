"""Python's own library, from source files to tokens to train on: every user has this text, a minute or two of a laptop.

COMMAND: python -m mtnlg data build --config=configs/data/demo.py --output=runs/corpus, and then
python -m mtnlg train --config=configs/demo.py --workdir=runs/demo --config.data.source=runs/corpus/tokens
--config.data.tokenizer=runs/corpus/tokens/tokenizer
"""

from mtnlg.factory.graph import Graph


def get_graph():
    graph = Graph()
    graph.add("library", stage="extract", inputs=["python"])
    graph.add("clean", stage="clean", inputs=["library"], min_chars=256, fixes=("all:code",))
    graph.add("dedup", stage="dedup", inputs=["clean"])
    graph.add("tokenizer", stage="train-tokenizer", inputs=["dedup"], vocab_size=4096)
    graph.add("tokens", stage="tokenize", inputs=["dedup"], tokenizer="@tokenizer")
    return graph
