"""Show what a datastore did to an answer: the probability that each token got from it, and the sources.

answer ──> pieces (text, probability, their entries, the citation they belong to) ──> HTML
       └─> sources, numbered, with their shares
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memograft.page.template import filled
from memograft.request import Answer, Citation, Reference, Source, TokenReferences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Entry", "Listed", "Piece", "References", "references_html", "references_of"]

_LISTED = 8  # sources in the list, besides cited ones
_SHOWN = 4  # entries per token
_BEFORE, _AFTER = 24, 12  # tokens of a source around an entry
_EXCERPT = 240  # characters of a source


@dataclass(frozen=True)
class Entry:
    """An entry that contributed to a token: its source, and the source's text around it.

    `number` is the source's number in the list, or 0. `token` is empty if its place in the text is unknown.
    """

    source: Source
    position: int
    probability: float
    number: int
    before: str
    token: str = ""
    after: str = ""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer, usually a token.

    Attributes:
        text: the piece.
        probability: the part of its probability that came from the datastore.
        entries: the entries that contributed most.
        more: number of other entries.
        cited: number of the cited source; 0 for none.
        last: whether the citation ends with this piece.
    """

    text: str
    probability: float = 0.0
    entries: tuple[Entry, ...] = ()
    more: int = 0
    cited: int = 0
    last: bool = False


@dataclass(frozen=True)
class Listed:
    """A source with its number and its share of the answer's probability.

    `text` is the source's text, or of a long one the part around the entry that contributed most; a long `prompt` is
    cut.
    """

    number: int
    source: Source
    share: float
    text: str
    prompt: str


@dataclass(frozen=True)
class References:
    """An answer for display.

    Attributes:
        pieces: its text.
        sources: its sources, by descending share.
        more: number of other sources.
        share: part of the answer's probability that came from the datastore; None without a datastore.
    """

    pieces: tuple[Piece, ...]
    sources: tuple[Listed, ...] = ()
    more: int = 0
    share: float | None = None


def references_html(answer: Answer, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """An answer with its references as a piece of HTML without scripts, for a notebook or your own page.

    Args:
        answer: of a request with an `Rtd`; for others only the text is shown.
        tokenizer: the model's, or a copy while the engine has other requests. With it, each entry is marked in its
            source's text.

    Raises:
        MissingExtraError: jinja2 is not installed.

    Example:
        >>> from memograft import Datastore, Engine, Rtd
        >>> engine = Engine.from_pretrained("tiny")
        >>> store = Datastore.build(engine, [("What is the capital of Velmora?", "Torstad.")], progress=False)
        >>> answer = engine.answer("What is the capital of Velmora?", processors=[Rtd(store, weight=0.9)])
        >>> html = references_html(answer, engine.tokenizer)  # IPython.display.HTML(html) shows it
        >>> "of this answer's probability came from the datastore" in html
        True
    """
    return filled("references_alone.html.jinja", shown=references_of(answer, tokenizer))


def references_of(answer: Answer, tokenizer: PreTrainedTokenizerBase | None = None) -> References:
    """The displayed form of an answer; see `references_html`."""
    if not answer.references:
        return References((Piece(answer.text),))
    count, shares = len(answer.references), answer.sources
    citations = answer.citations
    cited = {citation.source.id for citation in citations}
    kept = [s for n, s in enumerate(shares) if n < _LISTED or s.source.id in cited]
    places, most = _Places(tokenizer), _most(answer)
    listed = tuple(
        Listed(n, source, moved / count, places.excerpt(*most[source.id]), _beginning(source.prompt))
        for n, (source, moved) in enumerate(((share.source, share.probability) for share in kept), 1)
    )
    numbers = {item.source.id: item.number for item in listed}
    return References(
        tuple(_pieces(answer, citations, numbers, places)),
        listed,
        len(shares) - len(listed),
        sum(token.probability for token in answer.references) / count,
    )


def _most(answer: Answer) -> dict[str, tuple[Reference, int]]:
    """The entry of each source that contributed most, with its token."""
    most: dict[str, tuple[Reference, int]] = {}
    for token in answer.references:
        for entry in token.entries:
            id = entry.source.id
            if id not in most or entry.probability > most[id][0].probability:
                most[id] = entry, token.token_id
    return most


def _pieces(
    answer: Answer, citations: Sequence[Citation], numbers: Mapping[str, int], places: _Places
) -> Iterator[Piece]:
    start = 0
    group: list[TokenReferences] = []  # tokens without text are joined with the next one
    for token in answer.references:
        group.append(token)
        if token.end > start:
            citation = next((c for c in citations if c.start < token.end and start < c.end), None)
            found = [(entry, said.token_id) for said in group for entry in said.entries]
            found.sort(key=lambda pair: -pair[0].probability)
            yield Piece(
                answer.text[start : token.end],
                sum(said.probability for said in group) / len(group),
                tuple(_entry(entry, numbers, places.around(entry, id)) for entry, id in found[:_SHOWN]),
                max(0, len(found) - _SHOWN),
                numbers[citation.source.id] if citation else 0,
                citation is not None and citation.end <= token.end,
            )
            start, group = token.end, []
    if start < len(answer.text):
        yield Piece(answer.text[start:])


def _entry(entry: Reference, numbers: Mapping[str, int], around: tuple[str, str, str]) -> Entry:
    return Entry(entry.source, entry.position, entry.probability, numbers.get(entry.source.id, 0), *around)


@dataclass
class _Places:
    """Finds the text around entries in their sources."""

    tokenizer: PreTrainedTokenizerBase | None
    _ids: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def around(self, entry: Reference, token: int) -> tuple[str, str, str]:
        """The source's text before the entry's token, the token, and the text after it.

        If the token is not at its position, because a template encoded the text differently, only the beginning of the
        text.
        """
        text, at = entry.source.text, entry.position
        for lead in ("", " ") if self.tokenizer is not None else ():
            ids = self._encoded(lead, text)
            if at < len(ids) and ids[at] == token:
                first, last = max(0, at - _BEFORE), at + 1 + _AFTER
                parts = [self._decoded(ids[first:end]) for end in (at, at + 1, last)]
                if parts[1].startswith(parts[0]) and parts[2].startswith(parts[1]):
                    before = ("…" if first else "") + parts[0]
                    after = parts[2][len(parts[1]) :] + ("…" if last < len(ids) else "")
                    return before, parts[1][len(parts[0]) :], after
        return _beginning(text), "", ""

    def excerpt(self, entry: Reference, token: int) -> str:
        """The source's text if it is short, else the part around the entry."""
        text = _beginning(entry.source.text)
        return text if len(text) <= _EXCERPT else " ".join("".join(self.around(entry, token)).split())

    def _encoded(self, lead: str, text: str) -> list[int]:
        assert self.tokenizer is not None
        if (lead, text) not in self._ids:
            encoded = self.tokenizer(lead + text, add_special_tokens=False, split_special_tokens=True, verbose=False)
            self._ids[lead, text] = list(encoded["input_ids"])
        return self._ids[lead, text]

    def _decoded(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}…"
