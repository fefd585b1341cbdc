"""The corpus of Megatron-Turing NLG 530B (arXiv 2201.11990, section 3 and table 2): its 15 sets, from raw text to tokens.

COMMAND: MTNLG_CORPORA=/data/raw python -m mtnlg data build --config=configs/data/mtnlg.py --output=/data/mtnlg, and then
python -m mtnlg train --config=configs/mtnlg_530b.py --config.data.source=/data/mtnlg/Books3,... in the order of that config.
In MTNLG_CORPORA lie a folder for each set, named as below (WARC for the two snapshots of Common Crawl, JSONL or Parquet for the
others), `tasks` with the evaluation tasks as JSONL, and `gpt2` with the tokenizer's files. One that lies elsewhere: --set
NAME-raw.inputs=PATH. `--dry-run` says what is missing.

Of duplicates the one in the first set is kept. The paper keeps the better one, without printing its order: this is by how often
each set is read there.
"""

import os

from mtnlg.factory.graph import Graph

ROOT = os.environ.get("MTNLG_CORPORA", "corpora")

GOOD = ("OpenWebText2", "Wikipedia", "Books3")  # what pages are judged by
CRAWLED = ("CC-2020-50", "CC-2021-04")  # whole snapshots: pages, of which few are worth reading
WEB = ("OpenWebText2", "RealNews", "Pile-CC", "CC-Stories", *CRAWLED)
FIXES = {"Gutenberg": "gutenberg", "RealNews": "realnews", "CC-Stories": "stories", "GitHub": "code", "ArXiv": "paper"}

SETS = (
    "OpenWebText2",
    "Wikipedia",
    "NIHExPorter",
    "BookCorpus2",
    "PubMedAbstracts",
    "Books3",
    "StackExchange",
    "RealNews",
    "Gutenberg",
    "Pile-CC",
    "CC-2021-04",
    "CC-2020-50",
    "CC-Stories",
    "ArXiv",
    "GitHub",
)


def get_graph():
    graph = Graph()
    for name in SETS:
        graph.add(f"{name}-raw", stage="extract", inputs=[f"{ROOT}/{name}"], source=name, html="justext")
        fixes = (f"all:{FIXES[name]}",) if name in FIXES else ()
        graph.add(f"{name}-clean", stage="clean", inputs=[f"{name}-raw"], min_chars=512, fixes=fixes)
        if name in WEB:
            quality = "@quality" if name in CRAWLED else ""
            graph.add(f"{name}-good", stage="filter", inputs=[f"{name}-clean"], languages=("en",), quality=quality, alpha=3.0)
    crawled = tuple(f"@{name}-clean" for name in CRAWLED)
    graph.add("quality", stage="train-quality", inputs=[f"{name}-clean" for name in GOOD], negative=crawled)
    kept = [f"{name}-good" if name in WEB else f"{name}-clean" for name in SETS]
    graph.add("dedup", stage="dedup", inputs=kept, min_jaccard=0.8)
    graph.add("decontaminate", stage="decontaminate", inputs=["dedup"], against=(f"{ROOT}/tasks",), max_words=13, min_words=8)
    for name in SETS:
        graph.add(f"{name}-own", stage="filter", inputs=["decontaminate"], where=(f"source={name}",))
        graph.add(name, stage="tokenize", inputs=[f"{name}-own"], tokenizer=f"{ROOT}/gpt2")
    return graph
