"""Build a request's answer, with log-probabilities and references, from its finished row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from memograft.decoding.batch_processor import entries
from memograft.decoding.row import Row
from memograft.memory.report import MemoryReport
from memograft.prompt.builder import PromptBuilder
from memograft.request import Answer, Reference, Timings, TokenLogprob, TokenReferences, Usage
from memograft.serving.queue import Job
from memograft.serving.stream import TextSoFar
from memograft.serving.work import Work

__all__ = ["answer_of", "logprobs", "references"]

Pieces = Callable[[Sequence[int]], list[str]]
Decode = Callable[[Sequence[int]], str]

_HALF = "\ufffd"  # replacement character: decoded from an incomplete UTF-8 sequence
_LEAD = 16  # tokens decoded before a token, because its text depends on them (a leading space, a split character)


def answer_of(
    job: Job, row: Row, prompts: PromptBuilder, report: MemoryReport | None, cached: int, clock: Sequence[float]
) -> Answer:
    """Build the answer of a finished row.

    Args:
        job: the job of the row; the rest of the text is passed to its listener.
        row: the row.
        prompts: decodes its tokens.
        report: of its memory.
        cached: number of prompt tokens that came from a prefix.
        clock: `time.perf_counter()` at the start of prefill, of memorizing, and of decoding.

    Raises:
        Exception: the error that ended the row early.
    """
    if row.error is not None:
        raise row.error
    work: Work = job.payload
    assert work.fitted is not None
    assert row.finish_reason
    text = TextSoFar(prompts.decode, work.sampling.stop).final(row.tokens)
    job.emit(text)
    return Answer(
        text=text,
        token_ids=tuple(row.tokens),
        finish_reason=row.finish_reason,
        usage=Usage(len(work.prompt.ids), cached, len(row.tokens)),
        memory=report,
        timings=Timings(clock[1] - clock[0], clock[2] - clock[1], time.perf_counter() - clock[2]),
        documents=work.prompt.documents,
        dropped=work.fitted.dropped,
        truncated=work.fitted.truncated,
        logprobs=logprobs(row, prompts.pieces),
        references=references(row, prompts.pieces, prompts.decode, text),
        prompt_ids=work.prompt.ids,
    )


def logprobs(row: Row, pieces: Pieces) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of each token; empty if the request did not ask for them."""

    def text(token: int) -> str:
        return pieces([token])[0]

    return tuple(
        TokenLogprob(
            token,
            text(token),
            float(chance),
            tuple((t, text(t), p) for t, p in zip(likeliest.tolist(), values.tolist(), strict=True)),
        )
        for token, (chance, likeliest, values) in zip(row.tokens, row.chances, strict=False)
    )


def references(row: Row, pieces: Pieces, decode: Decode, text: str) -> tuple[TokenReferences, ...]:
    """The sources that contributed to each token; empty without a batch processor.

    Args:
        row: a finished row.
        pieces: token ids -> the text of each.
        decode: token ids -> their text.
        text: of the answer, which a stop string may have shortened.
    """
    if row.batch is None:
        return ()
    moved = [entries(number, step) for number, step in row.moved[: len(row.tokens)]]
    sources = {number: row.batch.source(number) for number in {n for found in moved for n, _, _ in found}}
    ends = [min(end, len(text)) for end in _ends(row.tokens, decode)]
    return tuple(
        TokenReferences(token, piece, tuple(Reference(sources[n], at, p) for n, at, p in found), start, end)
        for token, piece, found, start, end in zip(
            row.tokens, pieces(row.tokens), moved, [0, *ends], ends, strict=False
        )
    )


def _ends(tokens: Sequence[int], decode: Decode) -> list[int]:
    """The position in the whole text at which each token ends."""
    ends, end = [], 0
    for n in range(len(tokens)):
        lead, whole = (decode(tokens[max(0, n - _LEAD) : to]).rstrip(_HALF) for to in (n, n + 1))
        end += len(whole) - len(lead)
        ends.append(end)
    return ends
