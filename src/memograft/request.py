"""An engine's input and output: `Sampling`, `Request`, `Answer` and their parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from memograft.attribution import Words, contains, parting, sentences, without
from memograft.decoding.sampling import Sampling, is_number, is_whole
from memograft.documents import Document, Source, as_documents
from memograft.errors import EmptyPromptError, SettingsError
from memograft.memory.report import MemoryReport
from memograft.notebook import answer_html
from memograft.prompt.words import WORD, words_of

if TYPE_CHECKING:
    from memograft.memory.bank import Bank
    from memograft.memory.base import Memory
    from memograft.memory.handle import MemoryHandle
    from memograft.memory.served import ServedMemory

__all__ = [
    "Answer",
    "Citation",
    "Conflict",
    "Reference",
    "Request",
    "Sampling",
    "Source",
    "SourceShare",
    "Timings",
    "TokenLogprob",
    "TokenReferences",
    "Usage",
]

_MOST_LOGPROBS = 20
_CITED = 0.1  # least probability of a token that must come from the datastore for a source to be cited
_COMMON = 3  # words that a sentence and a document must share at their beginning to be compared
_BETWEEN = 2  # tokens without a main source that a citation may contain in a row


@dataclass(frozen=True)
class Request:
    """One question with its documents.

    Attributes:
        question: short for one user message; give this or `messages`.
        query: the question alone, if the last user message has more text (instructions, a form). Relevance of documents
            is judged by it.
        messages: the conversation, each with `role` and `content`; an assistant's may have `tool_calls`.
        documents: highest-ranked first: Documents, strings or mappings.
        memory: None for answering without memorizing, FastMem settings, or a handle from `Engine.memorize`. For a
            `RemoteEngine`, the server's memory.
        processors: transformers LogitsProcessors for this request alone, called with (1, T) ids and (1, V) scores; and
            at most one `Rtd`, which acts before them.
        sampling: how tokens are chosen.
        tools: the tools that the model may call, as JSON schemas in OpenAI's form; passed to the chat template.
        json_schema: the answer must be JSON of this schema.
        json_optional: the model may answer in text instead. An answer that begins like JSON of the schema (with "{" for
            an object) must follow the schema; any other is text.
        logprobs: number of most likely tokens to report for each chosen one, 0 to 20; None reports nothing.
        overflow: what to do if the prompt is too long: "error", "drop" the lowest-ranked documents, or "truncate" the
            ends of documents, lowest-ranked first.
        timeout: seconds after which the request is cancelled; None: never.
        bank: used instead of the engine's, for this request alone; requests with different banks share nothing.

    Raises:
        EmptyPromptError: neither a question nor messages.
        SettingsError: both, or a value is out of its range.
    """

    question: str | None = None
    messages: Sequence[Mapping[str, object]] = ()
    documents: Sequence[Document | str | Mapping[str, object]] = ()
    memory: Memory | MemoryHandle | ServedMemory | None = None
    processors: Sequence[object] = ()
    sampling: Sampling = field(default_factory=Sampling)
    tools: Sequence[Mapping[str, object]] = ()
    json_schema: Mapping[str, object] | None = None
    logprobs: int | None = None
    query: str | None = None
    overflow: Literal["error", "drop", "truncate"] = "error"
    timeout: float | None = None
    json_optional: bool = False
    bank: Bank | None = None

    def __post_init__(self) -> None:
        asked = ({"role": "user", "content": self.question},)
        if (
            self.question is not None and self.messages and tuple(self.messages) != asked
        ):  # dataclasses.replace passes both
            raise SettingsError("`question` is short for one user message, got it together with `messages`; pass one")
        if self.question is not None:
            if not isinstance(self.question, str) or not self.question.strip():
                raise EmptyPromptError(f"`question` must be text, got {self.question!r}; ask something")
            object.__setattr__(self, "messages", asked)
        if isinstance(self.messages, str | Mapping) or not all(isinstance(m, Mapping) for m in self.messages):
            raise SettingsError(
                f"`messages` must be a list of mappings, got {self.messages!r}; "
                'write [{"role": "user", "content": "..."}]'
            )
        if not self.messages:
            raise EmptyPromptError("a request needs a `question` or at least one message, got neither; pass one")
        if isinstance(self.tools, str | Mapping) or not all(isinstance(tool, Mapping) for tool in self.tools):
            raise SettingsError(
                f"`tools` must be a list of mappings, got {self.tools!r}; "
                'write [{"type": "function", "function": {"name": ..., "parameters": {...}}}]'
            )
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise SettingsError(f"`json_schema` must be a mapping or None, got {type(self.json_schema).__name__}")
        if self.json_optional and self.json_schema is None:
            raise SettingsError("`json_optional` needs a `json_schema`, got none; pass one")
        if self.logprobs is not None and not (is_whole(self.logprobs) and 0 <= self.logprobs <= _MOST_LOGPROBS):
            raise SettingsError(f"`logprobs` must be 0 to {_MOST_LOGPROBS}, or None, got {self.logprobs!r}")
        if self.overflow not in ("error", "drop", "truncate"):
            raise SettingsError(f'`overflow` must be "error", "drop" or "truncate", got {self.overflow!r}')
        if self.timeout is not None and not (is_number(self.timeout) and self.timeout > 0):
            raise SettingsError(f"`timeout` must be a positive number of seconds or None, got {self.timeout!r}")
        object.__setattr__(self, "messages", tuple(dict(m) for m in self.messages))
        object.__setattr__(self, "documents", as_documents(self.documents))
        object.__setattr__(self, "tools", tuple(dict(tool) for tool in self.tools))

    def copies(self, n: int) -> list[Request]:
        """This request n times, for several answers to it: `engine.answer_batch(request.copies(3))`.

        The first copy has the seed of this request, the others have seeds derived from it. Without a seed, each draws
        its own. The documents are memorized once per batch. At temperature 0 all answers are equal.

        Raises:
            SettingsError: `n` is not a whole number of at least 1.
        """
        if not is_whole(n) or n < 1:
            raise SettingsError(f"`n` must be a whole number of at least 1, got {n!r}")
        return [replace(self, sampling=replace(self.sampling, seed=_derived(self.sampling.seed, k))) for k in range(n)]


def _derived(seed: int | None, number: int) -> int | None:
    """The seed of one of several answers. Hashed, so that the second seed of 1 is not the first of 2."""
    if seed is None or number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7])


@dataclass(frozen=True)
class Usage:
    """Token counts of a request: of the prompt, of its part taken from a cached prefix, and of the answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token: after memory, rules, `logit_bias` and penalty, before sampling and constraints.

    Attributes:
        token_id: the token.
        text: its text.
        logprob: natural logarithm of its probability.
        top: (token id, text, logprob) of the most likely tokens at its position, most likely first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Reference:
    """An entry of a datastore that made a token likelier.

    Attributes:
        source: the source of the entry.
        position: index of its token in the source's answer.
        probability: the part of the token's probability that came from it.
    """

    source: Source
    position: int
    probability: float


@dataclass(frozen=True)
class TokenReferences:
    """The datastore entries that contributed to one token of an answer.

    Attributes:
        token_id: the token.
        text: its text.
        entries: entries whose next token it is, most probable first; empty if none is near.
        start: start of the token in the answer's text, in characters.
        end: end of the token; equal to `start` for a token without text or an incomplete character.
    """

    token_id: int
    text: str
    entries: tuple[Reference, ...] = ()
    start: int = 0
    end: int = 0

    @property
    def probability(self) -> float:
        """The part of the token's probability that came from the datastore."""
        return sum(entry.probability for entry in self.entries)


@dataclass(frozen=True)
class SourceShare:
    """The probability that a source's entries contributed, summed over the tokens of an answer."""

    source: Source
    probability: float


@dataclass(frozen=True)
class Citation:
    """A part of an answer that comes from one source, which contributed the most to each of its tokens.

    Attributes:
        start: start in the answer's text, in characters.
        end: end in the answer's text.
        source: the source.
        probability: mean over the tokens of the probability that came from the source's entries.
    """

    start: int
    end: int
    source: Source
    probability: float


@dataclass(frozen=True)
class Conflict:
    """A place of an answer where a datastore's example and a document of the prompt say different things.

    Attributes:
        start: where the answer's words begin that one of them says, in characters of its text.
        end: where they end.
        source: the example.
        document: the document.
        follows: which of them the answer follows there.
        otherwise: what the other one says.
    """

    start: int
    end: int
    source: Source
    document: Document
    follows: Literal["document", "datastore"]
    otherwise: str


@dataclass(frozen=True)
class Timings:
    """Seconds of each stage, for the whole batch the request ran in."""

    prefill: float
    memorize: float
    decode: float


@dataclass(frozen=True)
class Answer:
    """An answer, and how it was made.

    Attributes:
        text: the answer.
        token_ids: its tokens.
        finish_reason: "stop" (an end token or a stop string) or "length".
        usage: token counts.
        memory: what memorizing did; None if the request had no memory.
        timings: seconds per stage.
        documents: the documents in the prompt, in order.
        dropped: documents left out because the prompt was too long.
        truncated: documents that were shortened because the prompt was too long.
        logprobs: one for each of `token_ids`, if the request asked for them.
        prompt_ids: the tokens of the prompt.
        references: for each of `token_ids`, the datastore entries that contributed; empty if the request has no `Rtd`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    memory: MemoryReport | None
    timings: Timings
    documents: tuple[Document, ...] = ()
    dropped: tuple[Document, ...] = ()
    truncated: tuple[Document, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_ids: tuple[int, ...] = field(default=(), repr=False)
    references: tuple[TokenReferences, ...] = ()

    def _repr_html_(self) -> str:
        tokens = [(token.text, token.logprob) for token in self.logprobs]
        sources = [(share.source.text, share.probability) for share in self.sources]
        return answer_html(self.text, tokens, self.memory._repr_html_() if self.memory else "", sources)

    @property
    def sources(self) -> tuple[SourceShare, ...]:
        """The `references` summed per source, highest probability first."""
        shares = _shares(entry for token in self.references for entry in token.entries).values()
        return tuple(SourceShare(*share) for share in sorted(shares, key=lambda share: -share[1]))

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The parts of `text` that come from one source each, in order.

        Tokens without a main source, such as words that all examples share, are included only if there are few of them
        within such a part. Parts without a whole word are not cited, nor is the beginning of a sentence that goes on to
        follow a document against the source; see `conflicts`.
        """
        left = {c.end for c in self.conflicts if c.follows == "document"}
        spans = [(own.places[0][0], own.places[-1][1]) for own in sentences(self.text)]
        nexts = [*(start for start, _ in spans), len(self.text)][1:]
        cuts = [(start, after) for (start, end), after in zip(spans, nexts, strict=True) if end in left]
        found = []
        for cited in self._cited():
            for start, end in without(cited.start, cited.end, cuts):
                if WORD.search(self.text, start, end):
                    found.append(replace(cited, start=start, end=start + len(self.text[start:end].rstrip())))
        return tuple(found)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """Where a cited source and a document of the prompt contradict each other, in order.

        Words are compared, not meanings. A conflict is a sentence of the answer that begins like the source and ends
        in the words of a document where the source has other words; or that follows the source where a document with
        the same beginning, of three words or more, has other words. The differing words have none in common.
        """
        found: dict[tuple[int, str], Conflict] = {}
        parts = self._cited() if self.documents else []
        for own in sentences(self.text) if parts else ():
            for cited in parts:
                if covered := own.within(cited.start, cited.end):
                    conflict = self._conflict(own, covered, cited.source)
                    if conflict is not None:
                        found.setdefault((conflict.start, cited.source.id), conflict)
        return tuple(found.values())

    def _conflict(self, own: Words, covered: range, source: Source) -> Conflict | None:
        """The conflict of a source and a document in one sentence, of which these words are cited."""
        end = own.places[-1][1]
        left = parting(own, covered.start, source.text)
        follows: Literal["document", "datastore"] = "document" if left else "datastore"
        for document in self.documents:
            if follows == "datastore":
                left = parting(own, 0, document.text)
            if left is None or set(words_of(left.otherwise)) & set(rest := own.words[left.at :]):
                continue  # they differ in more than one place: it may be about something else
            if contains(document.text, rest) if follows == "document" else left.at >= _COMMON and left.at in covered:
                return Conflict(own.places[left.at][0], end, source, document, follows, left.otherwise)
        return None

    def _cited(self) -> list[Citation]:
        """The parts of the text to which one source contributed most."""
        runs: list[tuple[Source, int, int]] = []
        for n, source in enumerate(map(_mainly_from, self.references)):
            if source is not None:
                goes_on = runs and runs[-1][0].id == source.id and n - runs[-1][2] <= _BETWEEN + 1
                runs.append((source, runs.pop()[1] if goes_on else n, n))
        found = []
        for source, first, last in runs:
            tokens = self.references[first : last + 1]
            start, end = tokens[0].start, tokens[-1].end
            if any(start <= word.start() and word.end() <= end for word in WORD.finditer(self.text)):
                stretch = self.text[start:end]
                start += len(stretch) - len(stretch.lstrip())
                given = [e.probability for token in tokens for e in token.entries if e.source.id == source.id]
                found.append(Citation(start, start + len(stretch.strip()), source, sum(given) / len(tokens)))
        return found


def _mainly_from(token: TokenReferences) -> Source | None:
    """The source that contributed more than half of a token's datastore probability, if that is not too small."""
    if token.probability < _CITED:
        return None
    source, most = max(_shares(token.entries).values(), key=lambda share: share[1])
    return source if most > token.probability / 2 else None


def _shares(entries: Iterable[Reference]) -> dict[str, tuple[Source, float]]:
    """Id -> source and the probability that its entries contributed."""
    shares: dict[str, tuple[Source, float]] = {}
    for entry in entries:
        _, moved = shares.get(entry.source.id, (entry.source, 0.0))
        shares[entry.source.id] = entry.source, moved + entry.probability
    return shares
