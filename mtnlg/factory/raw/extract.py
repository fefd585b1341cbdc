"""From what is raw (text, source code, HTML, WARC, JSONL, Parquet, data sets of the hub) to documents, one after another.

Nothing that is read is trusted: what is damaged, too long, too deep or takes too long is set aside and named, and the rest goes on.
"""

import codecs
import dataclasses
import pathlib
from dataclasses import dataclass

from mtnlg.core.schema import key
from mtnlg.factory import documents, passes, stage
from mtnlg.factory.documents import Drop, Record, Unreadable
from mtnlg.factory.passes import Machine
from mtnlg.factory.raw import html, warc
from mtnlg.factory.raw.inputs import RawInputs
from mtnlg.factory.tally import Tally


@dataclass(frozen=True)
class Extract:
    """Makes documents of files and folders, of Python's own library (python) and of data sets of the hub (hf:NAME[:CONFIG[:SPLIT]]).

    Files are known by their suffixes: .jsonl, .ndjson, .parquet, .html, .htm, .xhtml, .warc, text (.txt, .md, .rst, .tex) and source code
    (.py, .c, .java and so on), all but Parquet also packed (.gz, .zst).
    """

    source: str = key("", "what the documents come from; empty: what they say themselves, or else the name of the input")
    html: str = key("trafilatura", "by whose rules the text of a page is found", html.RULES)
    stopwords: str = key("English", "of justext: the language whose stop words tell text from menus; empty: it does without")
    text: str = key("text", "the field or column of JSONL, Parquet and data sets with the text")
    fields: tuple[str, ...] = key(("id", "url"), "of Parquet and data sets: what else is read, where it is there")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises ConfigError, MissingInput, DataError, and what `passes.run` raises."""
        read = RawInputs(inputs, self.text, self.fields)
        what = {"stage": "extract", "options": dataclasses.asdict(self)}
        work = stage.DocumentWork(self.step, self.parse)
        return passes.run(pathlib.Path(output), what, read, work, stage.SUFFIX, machine, prepare=read.tally)

    def check(self) -> None:
        html.check(self.html, self.stopwords)

    def step(self) -> stage.Step:
        return _Step(self)

    def parse(self, record: Record) -> dict:
        """The document of a record, or a Page. Raises Unreadable."""
        if record.fault:
            raise Unreadable(record.fault)
        document = _MAKERS[record.kind](record) if record.kind in _MAKERS else documents.parse(record, self.text)
        if self.source:
            document["source"] = self.source
        return document


class Page(dict):
    """A document whose text is still HTML. lacks: why there is none in it."""

    lacks = ""


class _Step:
    def __init__(self, options: Extract):
        self._text_of = html.TextOf(options.html, options.stopwords)

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        if isinstance(document, Page):
            if document.lacks:
                return Drop(document.lacks)
            document = dict(document, text=self._text_of(document["text"]))
            if not document["text"]:
                return Drop("a page without text")
        return [document] if document["text"].strip() else Drop("empty")


def _from_text(record: Record) -> dict:
    is_utf16 = record.content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = record.content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("invalid utf-8") from None
    if "\0" in text:
        raise Unreadable("no text, but bytes")
    return {"id": record.where, "text": text, "source": record.source}


def _from_html(record: Record) -> Page:
    return Page(id=record.where, text=html.decoded(record.content), source=record.source)


def _from_warc(record: Record) -> Page:
    found = warc.page(record.content)
    id = found.about.get("warc-record-id", "").strip("<>") or record.where
    page = Page(id=id, text="", source=record.source)
    page |= {"url": found.about.get("warc-target-uri", "").strip("<>"), "date": found.about.get("warc-date", "")}
    if found.media_type not in ("text/html", "application/xhtml+xml"):
        page.lacks = "no HTML"
    elif not 200 <= found.status < 300:
        page.lacks = "no page, but an error of its server"
    else:
        page["text"] = html.decoded(found.body, found.charset)
    return page


_MAKERS = {"text": _from_text, "html": _from_html, "warc": _from_warc}
