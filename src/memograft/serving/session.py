"""A session: the model's thread answers requests from the first one until none is left.

    job ──> prompt ──> prefill ──> memorize ──> row ──┐
                                                      ├──> decoding loop ──> answer, as soon as its row ends
    job ──> prompt ──> prefill ──> memorize ──> row ──┘

Requests join the loop while others are decoded. Until then their work is done in parts between decoding steps, so that
no stream waits for longer than `max_stall` (and one part: a pass over some tokens, or an optimiser step).
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from memograft.decoding.fallback import base_answer
from memograft.decoding.loop import Loop
from memograft.decoding.row import Row
from memograft.memory.bank import Bank
from memograft.memory.base import Brought, Model, Task, Wanted, by_kind
from memograft.memory.report import MemoryReport
from memograft.model.kv import Prefill, Segment, picked
from memograft.model.prefill import Pace, prefill_behind, prefill_beside
from memograft.serving.answer import answer_of
from memograft.serving.aside import Aside
from memograft.serving.queue import Job
from memograft.serving.stream import TextSoFar
from memograft.serving.tokens import Tokens
from memograft.serving.work import Work

__all__ = ["Session"]

Ready = tuple[Prefill, list[Row]]  # what joins the loop: the prefill also has rows for echoes
_AT_ONCE = 5  # newcomers are prepared together while their prefill takes at most this many times `max_stall`


class Session:
    """Answers jobs of an engine.

    Args:
        model: the model.
        tokens: of the engine, for JSON schemas.
        window: maximum number of tokens of prompt and answer together.
        max_batch: maximum number of requests that are decoded together.
        max_stall: seconds for which preparing requests may keep others waiting for their next token.
        prompt_lookup: maximum length of a draft from the prompt; 0 drafts nothing.
    """

    def __init__(
        self, model: Model, tokens: Tokens, window: int, max_batch: int, max_stall: float, prompt_lookup: int
    ) -> None:
        self._model, self._tokens, self._window = model, tokens, window
        self._max_batch, self._max_stall, self._pace = max_batch, max_stall, Pace(max_stall)
        self._prompt_lookup = prompt_lookup

    def run(self, jobs: list[Job], more: Callable[[int], list[Job]]) -> None:
        """Answer `jobs`, and those that `more` returns meanwhile; it is given how many may join."""
        loop = Loop(self._model.backbone, self._model.prompts.tokenizer, self._prompt_lookup)
        decoded: list[Job] = []
        ready: list[Ready] = []
        while True:
            decoded = [job for job in decoded if not job.done]
            if not jobs and not ready:
                jobs = more(self._max_batch - len(decoded))
            if not (jobs or ready or loop.rows):
                return
            if jobs:
                now, jobs = self._now(jobs, idle=not loop.rows)
                decoded += now
                ready += self._prepared(now, loop)
            ready = [one for one in ready if not self._joins(loop, *one)]
            loop.step()

    def _now(self, jobs: list[Job], *, idle: bool) -> tuple[list[Job], list[Job]]:
        """Split jobs into those that are prepared now, together, and those that follow."""
        jobs = [job for job in jobs if job.call is not None or self._fit(job)]
        room, count = self._pace.tokens * _AT_ONCE, 0
        for job in jobs:
            room -= 0 if job.call is not None else len(job.payload.prompt.ids)
            if count and room < 0 and not idle:
                break
            count += 1
        return jobs[:count], jobs[count:]

    def _fit(self, job: Job) -> bool:
        """1. Prompt: build a request's prompt. Returns False if the request has ended here."""
        try:
            job.payload.fit(self._model.prompts, self._tokens, self._window)
        except Exception as e:
            job.fail(e)
        return not job.given_up()

    def _prepared(self, jobs: list[Job], loop: Loop) -> list[Ready]:
        """Prepare jobs, in turns with the loop as long as it has rows."""
        if not loop.rows:
            return self._prepare(jobs, lambda: None, idle=True)
        aside = Aside(partial(self._prepare, jobs))
        try:
            while not aside.resume(self._max_stall if loop.rows else math.inf):
                loop.step()
        finally:
            aside.close()
        return aside.result

    def _prepare(self, jobs: list[Job], pause: Callable[[], None], *, idle: bool = False) -> list[Ready]:
        """Run a call, or prepare requests: together, or if that fails each alone, so that only a faulty one fails."""

        def given_up() -> bool:
            pause()
            return all(job.given_up() for job in jobs)

        task = Task(given_up, pace=None if idle else self._pace)
        try:
            if jobs and jobs[0].call is not None:
                jobs[0].succeed(jobs[0].call(task))
                return []
            return [self._memorized(jobs, task)] if jobs else []
        except Exception as e:
            error = e
        if len(jobs) == 1 and (jobs[0].call is not None or not jobs[0].payload.spares(error)):
            jobs[0].fail(error)
            return []
        traceback.clear_frames(error.__traceback__)  # frees the memory of the failed batch
        return [one for job in jobs for one in self._prepare([job], pause, idle=idle)]

    def _memorized(self, jobs: list[Job], task: Task) -> Ready:
        works: list[Work] = [job.payload for job in jobs]
        clock, model = [time.perf_counter()], self._model
        banks = [w.bank or model.bank for w in works]
        own = [replace(model, bank=bank) for bank in banks]

        # 2. Prefill: these keys and values are valid with every memory.
        wanted = [
            Wanted(w.memory, w.prompt, n, w.kept, w.brought, task, hide=partial(w.hide, model.prompts))
            for n, w in enumerate(works)
            if w.memory is not None
        ]
        segments = [its.recalled(work.prompt) for its, work in zip(own, works, strict=True)]
        groups = [
            (kind, replace(model, bank=bank), some)
            for kind, rows in by_kind(wanted)
            for bank, some in _by_bank(rows, banks)
        ]
        for kind, its, some in groups:
            for n, (want, segment) in enumerate(zip(some, kind.before(its, some), strict=True)):
                segments[want.row] = segment or segments[want.row]
                if want.prompt is not (prompt := works[want.row].prompt):  # its documents were hidden
                    some[n], segments[want.row] = replace(want, prompt=prompt, kept=None), segment
        texts: dict[int, tuple[tuple[int, ...], Segment]] = {}
        for kind, its, some in groups:
            named = zip(some, kind.beside(its, some), strict=True)
            texts |= {want.row: text for want, text in named if text is not None}
        filled, states = prefill_beside(
            model.backbone,
            [w.prompt.ids for w in works],
            list(texts.values()),
            model.pad_id,
            segments,
            task.pace,
            task.given_up,
        )
        beside_of = {} if states is None else {row: (states, n) for n, row in enumerate(texts)}
        for n, (its, work) in enumerate(zip(own, works, strict=True)):
            its.remember(work.prompt, filled, n)
        clock.append(time.perf_counter())

        # 3. Memorize.
        memories = [Brought()] * len(works)
        for kind, its, some in groups:
            some = [replace(want, beside=beside_of.get(want.row)) for want in some]
            for want, brought in zip(some, kind.prepare(its, some, filled, task), strict=True):
                memories[want.row] = brought
        clock.append(time.perf_counter())

        # 4. Decode, over the same cache. 5. Answer: each row as soon as it ends.
        rows, beside = [], {}  # beside: rows of base model answers, by request
        for n, (job, brought) in enumerate(zip(jobs, memories, strict=True)):
            rows.append(row := self._row(job, brought))
            row.on_end = finish = self._finish(job, brought.report, filled.cached[n], clock)
            if works[n].falls_back(brought, streams=job.on_text is not None):
                beside[n] = base_answer(row, model.prompts.decode, finish)
        if beside:
            filled = picked(filled, [*range(len(works)), *beside])
            works.extend(works[n] for n in beside)
        ends = [*rows, *beside.values()]
        echoed = [n for n, row in enumerate(ends) if row.cad is not None]
        return self._with_echoes(filled, works, echoed, task) if echoed else filled, ends

    def _with_echoes(self, filled: Prefill, works: list[Work], echoed: Sequence[int], task: Task) -> Prefill:
        """Add the rows of the prompts without documents, for the `echoed` rows.

        Of the request's memory it has what does not stand for documents: the prefix of a Mac, if the request has it.
        """
        model, own = self._model, [works[n] for n in echoed]
        echoes = [(work.memory, work.echo) for work in own if work.echo is not None]
        segments: list[Segment | None] = [None] * len(echoes)
        wanted = [
            Wanted(memory, echo, n, task=task)
            for n, (memory, echo) in enumerate(echoes)
            if memory is not None and filled.shifts[echoed[n]]
        ]
        for kind, some in by_kind(wanted):
            for want, segment in zip(some, kind.before(model, some), strict=True):
                segments[want.row] = segment
        prompts, bare = [work.prompt.ids for work in works], [echo.ids for _, echo in echoes]
        return prefill_behind(model.backbone, filled, prompts, bare, model.pad_id, segments)

    def _joins(self, loop: Loop, filled: Prefill, rows: Sequence[Row]) -> bool:
        """Add rows to the loop; False if they must wait until others have left and freed memory."""
        try:
            loop.add(filled, rows)
        except torch.OutOfMemoryError as error:
            if loop.rows:
                return False
            for row in rows:
                row.error = error
                row.on_end(row)
        return True

    def _row(self, job: Job, brought: Brought) -> Row:
        work: Work = job.payload
        text = TextSoFar(self._model.prompts.decode, work.sampling.stop)
        return Row(
            sampling=work.sampling,
            max_new_tokens=work.max_new_tokens,
            adapter=brought.adapter,
            rules=brought.rules,
            cad=work.cad if brought.about else None,
            dola=work.dola,
            batch=work.batch,
            processors=work.processors,
            logprobs=work.request.logprobs,
            on_tokens=None if job.on_text is None else lambda tokens: job.emit(text(tokens)),
            given_up=job.given_up,
        )

    def _finish(
        self, job: Job, report: MemoryReport | None, cached: int, clock: Sequence[float]
    ) -> Callable[..., None]:
        """Make the callback that builds the job's answer; it gets the reason if the base model's row was chosen."""

        def finish(row: Row, reason: str | None = None) -> None:
            said = report if report is None or reason is None else replace(report, rolled_back=True, reason=reason)
            try:
                job.succeed(answer_of(job, row, self._model.prompts, said, cached, clock))
            except Exception as e:
                job.fail(e)

        return finish


def _by_bank(rows: Sequence[Wanted], banks: Sequence[Bank | None]) -> list[tuple[Bank | None, list[Wanted]]]:
    """Group rows by the bank of their request."""
    groups: dict[int, tuple[Bank | None, list[Wanted]]] = {}
    for row in rows:
        bank = banks[row.row]
        groups.setdefault(id(bank), (bank, []))[1].append(row)
    return list(groups.values())
