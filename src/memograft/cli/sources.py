"""The datastore of `memograft ask`: its settings, and the sources of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from memograft.cli.datastore_info import must_exist

if TYPE_CHECKING:
    from memograft.request import Answer, Source
    from memograft.rtd.formula import Rtd

__all__ = ["sources_json", "sources_table", "steering"]

_LISTED = 5


def steering(folder: Path, weight: float | None) -> Rtd:
    """The `Rtd` of the datastore in a folder, with its default weight if None.

    Raises:
        StoreError: there is no datastore.
    """
    must_exist(folder)
    from memograft.rtd.formula import Rtd
    from memograft.rtd.shared import shared_datastore

    store = shared_datastore(folder)
    return Rtd(store) if weight is None else Rtd(store, weight=weight)


def sources_json(answer: Answer) -> dict[str, object]:
    """JSON values of an answer's sources; `share` is relative to the answer's probability."""
    tokens = _tokens(answer)
    return {
        "from_datastore": _from_datastore(answer),
        "sources": [
            {
                "id": share.source.id,
                "share": share.probability / tokens,
                "prompt": share.source.prompt,
                "text": share.source.text,
                "metadata": dict(share.source.metadata),
            }
            for share in answer.sources
        ],
        "citations": [
            {
                "text": answer.text[citation.start : citation.end],
                "start": citation.start,
                "end": citation.end,
                "id": citation.source.id,
                "probability": citation.probability,
            }
            for citation in answer.citations
        ],
        "conflicts": [
            {
                "text": answer.text[conflict.start : conflict.end],
                "start": conflict.start,
                "end": conflict.end,
                "id": conflict.source.id,
                "document": conflict.document.id,
                "follows": conflict.follows,
                "otherwise": conflict.otherwise,
            }
            for conflict in answer.conflicts
        ],
    }


def _tokens(answer: Answer) -> int:
    return max(1, len(answer.references))


def _from_datastore(answer: Answer) -> float:
    """The part of an answer's probability that came from the datastore."""
    return sum(token.probability for token in answer.references) / _tokens(answer)


def sources_table(answers: Mapping[str, Answer]) -> Group:
    """The sources that contributed most, with their share of each answer."""
    shares = {
        way: {s.source.id: s.probability / _tokens(answer) for s in answer.sources} for way, answer in answers.items()
    }
    known: dict[str, Source] = {s.source.id: s.source for answer in answers.values() for s in answer.sources}
    if not known:
        return Group(Text("datastore: no token of the answers came from it", style="dim"))
    ordered = sorted(known, key=lambda id: -max(of.get(id, 0.0) for of in shares.values()))
    table = Table(title="sources", title_justify="left", title_style="dim", box=None, padding=(0, 2, 0, 0), expand=True)
    table.add_column("id", overflow="fold", min_width=min(24, max(len(id) for id in ordered[:_LISTED])))
    for way in answers:
        table.add_column(way, justify="right", no_wrap=True, min_width=len(way))
    table.add_column("text", overflow="ellipsis", no_wrap=True, ratio=1)
    for id in ordered[:_LISTED]:
        text = " ".join(f"{known[id].prompt} {known[id].text}"[:200].split())
        table.add_row(Text(id), *(_percent(of.get(id, 0.0)) for of in shares.values()), Text(text, style="dim"))
    total = ", ".join(f"{_percent(_from_datastore(answer))} of the {way}" for way, answer in answers.items())
    more = f"; {len(ordered) - _LISTED} more sources" if len(ordered) > _LISTED else ""
    return Group(table, Text(f"datastore: {total} answer's probability{more}", style="dim"))


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"
