"""Articles and their summaries: XSum (arXiv 1808.08745), WikiHow (arXiv 1810.09305) and CNN / Daily Mail.

    xsum      {"document", "summary", "id"}
    wikihow   {"title", "article", "summary"}, or of the original table {"title", "text", "headline"}
    cnndm     {"article", "highlights", "id"}

FastMem's repository has each as {"article", "summary"}, which does not identify the set, so `--format` is needed. The
model is asked in the paper's words; split, order and cluster are determined by the article.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from memograft.evaluation.entry import Entry
from memograft.evaluation.readers.asked import Asked, document

__all__ = ["ASKED", "reader", "recogniser"]

ASKED = {
    "xsum": "Summarize the above article in 1 sentence.",
    "wikihow": "Summarize the above article in few steps using concise verb-object phrases directly.",
    "cnndm": "Summarize the above article in 3 sentences.",
}
_LOOKS = {
    "xsum": (("document", "summary"),),
    "wikihow": (("title", "article", "summary"), ("title", "text", "headline")),
    "cnndm": (("article", "highlights"),),
}


def recogniser(name: str) -> Callable[[Entry], bool]:
    """Return a function that tests whether an entry belongs to this set."""
    return lambda entry: any(entry.has(*fields) for fields in _LOOKS[name])


def reader(name: str) -> Callable[[Iterable[Entry]], Iterator[Asked]]:
    """Return a function that reads entries with this set's instruction."""

    def read(entries: Iterable[Entry]) -> Iterator[Asked]:
        for entry in entries:
            article = entry.text("article", "document", "text", default="").strip()
            summary = entry.text("summary", "highlights", "headline", default="").strip()
            yield Asked(
                id=str(entry.fields.get("id", entry.place)),
                question=ASKED[name],
                answers=(summary,),
                pages=(document(article, entry.text("title", default="")),),
                task="summary",
                key=article or entry.place,
                skip="" if article and summary else "no article or no summary is given",
            )

    return read
