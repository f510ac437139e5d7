"""Requests that arrive while others are answered: they join, nobody waits for long, and nobody's answer changes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from families import FAMILIES, ROUTED
from gates import Gate, queued, until
from gists import saved_gist
from memograft import Cad, Compacted, Engine, FastMem, Gist, Kept, Request, Sampling
from memograft.decoding.loop import Loop
from memograft.decoding.row import Row
from memograft.errors import EngineClosedError, RequestCancelledError, SettingsError
from memograft.memory.fastmem import contexts
from memograft.memory.fastmem.memory import _rules
from memograft.model.prefill import Pace, prefill
from test_decode import Say
from test_engine import FACTS, ask, generated, prompt_ids

STRONG = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)
LONG = [f"{fact} " * 3 for fact in FACTS]


@contextmanager
def passes(engine: Engine) -> Iterator[list[tuple[int, int]]]:
    """The shapes (rows, tokens) of all passes of the model."""
    shapes: list[tuple[int, int]] = []

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        shapes.append(tuple(ids.shape[:2]))

    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


def held(engine: Engine, n: int = 60, **options: Any) -> tuple[Any, Gate]:
    """A request that is being decoded, and waits for its gate after two tokens."""
    gate = Gate(2)
    job = engine._submit([ask(sampling=Sampling(n), processors=[gate], **options)])[0]
    assert gate.waiting.wait(20)
    return job, gate


def test_a_request_joins_and_leaves_while_another_is_decoded(make_engine: Any) -> None:
    engine = make_engine("llama", prompt_lookup=0)
    job, gate = held(engine, n=60)
    short = engine._submit([ask("Why?", n=4)])[0]
    seen: list[bool] = []
    short.future.add_done_callback(lambda _: seen.append(job.done))
    with passes(engine) as shapes:
        gate.go.set()
        answer = job.future.result(20)
    assert seen == [False], "it waited for the end of the other"
    assert short.future.result(0).token_ids == generated(engine, ask("Why?", n=4))
    assert answer.token_ids == generated(engine, ask(n=60))
    assert shapes.count((2, 1)) == 3  # the pass over its prompt gave its first token
    assert shapes[-1] == (1, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_whoever_joins_gets_the_answer_it_gets_alone(make_engine: Any, family: str) -> None:
    """With every piece of the newcomers' work followed by a token of the others."""
    engine = make_engine(family, max_stall=1e-9)
    strong = None if family in ROUTED else STRONG
    newcomers = [
        ask("Numbers?", documents=LONG, memory=strong, n=8),
        ask("Say something.", sampling=Sampling(7, temperature=0.8, seed=3, top_p=0.9)),
        ask(documents=FACTS, memory=strong and replace(strong, gate="support", contrast=0.5), n=9),
        ask("Which?", documents=FACTS[:2], processors=[Cad(0.5)], n=5),
        ask("Why?", n=3, logprobs=2),
    ]
    alone = [engine.answer(request) for request in newcomers]
    job, gate = held(engine, documents=FACTS[:1])
    jobs = [engine._submit([request])[0] for request in newcomers]
    gate.go.set()
    together = [j.future.result(60) for j in jobs]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    for token, other in zip(together[-1].logprobs, alone[-1].logprobs, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert job.future.result(20).token_ids == generated(engine, ask(documents=FACTS[:1], n=60))


def test_others_get_tokens_while_a_prompt_is_read_and_memorized(make_engine: Any) -> None:
    engine = make_engine("llama", max_stall=1e-9)
    request = ask(documents=LONG, memory=replace(STRONG, steps=12))
    alone = engine.answer(request)
    job, gate = held(engine, n=100)
    newcomer = engine._submit([request])[0]
    with passes(engine) as shapes:
        gate.go.set()
        assert newcomer.future.result(20).token_ids == alone.token_ids
        before = shapes[: shapes.index((2, 1))]
        job.future.result(20)
    parts = [n for n, (_, tokens) in enumerate(before) if tokens > 1]
    assert len(parts) > 2, "the prompt was read in one pass"
    assert all((1, 1) in before[a:b] for a, b in itertools.pairwise(parts))
    assert before[parts[-1] :].count((1, 1)) >= 12, "a token after each step"


def test_a_patient_engine_prepares_without_a_break(make_engine: Any) -> None:
    engine = make_engine("llama", max_stall=1e9)
    job, gate = held(engine)
    newcomer = engine._submit([ask(documents=LONG, memory=STRONG)])[0]
    with passes(engine) as shapes:
        gate.go.set()
        newcomer.future.result(20)
        job.future.result(20)
    assert shapes[: shapes.index((2, 1))].count((1, 1)) <= 1


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_stall_of_nothing_is_refused(make_engine: Any, value: float) -> None:
    with pytest.raises(SettingsError, match='`max_stall` must be "auto" or more than 0 seconds, got'):
        make_engine("llama", max_stall=value)


def test_memorizing_for_later_stalls_no_stream(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("llama", max_stall=1e-9)
    alone = engine.memorize(LONG, STRONG)
    real, inside = contexts.memorize, []
    with passes(engine) as shapes:

        def watched(*args: Any, **options: Any) -> Any:
            begun = len(shapes)
            made = real(*args, **options)
            inside.append(shapes[begun:].count((1, 1)))
            return made

        monkeypatch.setattr(contexts, "memorize", watched)
        job, gate = held(engine, n=100)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(engine.memorize, LONG, STRONG)
            queued(engine, 1)
            gate.go.set()
            handle = call.result(20)
        answer = job.future.result(20)
    assert len(inside) == 1
    assert inside[0] >= STRONG.steps, "a token after each step"
    assert answer.token_ids == generated(engine, ask(n=100))
    assert handle.report.losses == pytest.approx(alone.report.losses, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "least"), [(Kept(), 5), (Compacted(ratio=8), 12), (Gist, 2)], ids=["kept", "compacted", "gist"]
)
def test_so_does_reading_for_later(make_engine: Any, tmp_path: Path, kind: Any, least: int) -> None:
    """Documents are read in parts, those of several gists one after the other; and the result is the same."""
    engine = make_engine("llama", max_stall=1e-9)
    memory = kind if kind is not Gist else Gist(str(saved_gist(engine, tmp_path / "gist", window=64)))
    job, gate = held(engine, n=100)
    with passes(engine) as shapes, ThreadPoolExecutor(1) as pool:
        call = pool.submit(engine.memorize, LONG, memory)
        queued(engine, 1)
        gate.go.set()
        handle = call.result(20)
        job.future.result(20)
    reading = [n for n, (_, tokens) in enumerate(shapes) if tokens > 1]
    between = [n for n, m in itertools.pairwise(reading) if (1, 1) in shapes[n:m]]
    assert len(between) >= least, shapes
    alone = engine.answer(ask("Which?", memory=engine.memorize(LONG, memory), n=8))
    assert engine.answer(ask("Which?", memory=handle, n=8)).token_ids == alone.token_ids


def test_an_error_in_a_call_is_its_own(engine: Engine) -> None:
    job, gate = held(engine)
    gate.go.set()
    with pytest.raises(ZeroDivisionError, match="by zero"):
        engine.with_model(lambda *_: 1 // 0)
    assert engine.with_model(lambda backbone, _: backbone.width) == engine.model.config.hidden_size
    assert job.future.result(20).token_ids == generated(engine, ask(n=60))


def test_an_error_of_a_newcomer_harms_nobody_who_is_decoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("while memorizing")

    monkeypatch.setattr(contexts, "memorize", fails)
    job, gate = held(engine)
    bad, good = engine._submit([ask(documents=FACTS, memory=STRONG), ask("Why?")])
    gate.go.set()
    with pytest.raises(ZeroDivisionError, match="while memorizing"):
        bad.future.result(20)
    assert good.future.result(20).token_ids == generated(engine, ask("Why?"))
    assert job.future.result(20).token_ids == generated(engine, ask(n=60))


def test_giving_up_while_a_prompt_is_read_ends_the_reading(make_engine: Any) -> None:
    engine = make_engine("llama", max_stall=1e-9)
    job, gate = held(engine, n=100)
    newcomer = engine._submit([ask(documents=LONG)])[0]
    parts = 0

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal parts
        if kwargs["input_ids"].shape[1] > 1:
            parts += 1
            newcomer.cancel()

    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    gate.go.set()
    with pytest.raises(RequestCancelledError):
        newcomer.future.result(20)
    answer = job.future.result(20)
    handle.remove()
    assert parts == 1
    assert answer.token_ids == generated(engine, ask(n=100))


def test_requests_begin_in_their_order_and_all_are_answered(make_engine: Any) -> None:
    """Short ones do not overtake, and a long one that waits is not starved by short ones that keep coming."""
    engine = make_engine("llama", max_batch=2)
    begun: list[int] = []

    class Mark:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.number not in begun:
                begun.append(self.number)
            return scores

    lengths = [30, 2, 2, 40, 2, 2, 2, 9, 2]
    first, gate = held(engine)
    jobs = [engine._submit([ask(n=n, processors=[Mark(i)])])[0] for i, n in enumerate(lengths)]
    with passes(engine) as shapes:
        gate.go.set()
        for job in jobs:
            job.future.result(30)
    first.future.result(30)
    assert begun == sorted(begun)
    assert max(rows for rows, tokens in shapes if tokens == 1) == 2


def test_rows_wait_for_memory_that_others_will_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = Loop.add, []

    def add(self: Loop, *args: Any) -> None:
        tried.append(len(self.rows))
        if self.rows:
            raise torch.OutOfMemoryError("no room for the cache")
        real(self, *args)

    monkeypatch.setattr(Loop, "add", add)
    job, gate = held(engine, n=8)
    newcomer = engine._submit([ask("Why?")])[0]
    gate.go.set()
    assert newcomer.future.result(20).token_ids == generated(engine, ask("Why?"))
    assert job.future.result(20).token_ids == generated(engine, ask(n=8))
    assert tried.count(1) > 1


def test_a_batch_that_cannot_join_leaves_the_others_as_they_were(engine: Engine) -> None:
    """Its keys and values run out of memory halfway."""
    requests = [ask(n=12), ask("Why?", documents=FACTS, n=12)]
    loop, rows = Loop(engine._backbone, engine.tokenizer), [Row(Sampling(12), 12) for _ in requests]
    first, second = (prefill(engine._backbone, [prompt_ids(engine, r)], 0) for r in requests)
    loop.add(first, rows[:1])
    loop.step()
    broken = replace(second, kv_cache=replace_last_layer(second.kv_cache))
    with pytest.raises(torch.OutOfMemoryError):
        loop.add(broken, rows[1:])
    loop.step()
    loop.add(second, rows[1:])
    while loop.rows:
        loop.step()
    assert [tuple(row.tokens) for row in rows] == [generated(engine, r) for r in requests]


def replace_last_layer(cache: Any) -> Any:
    """The cache with values that cannot be copied in its last layer."""

    class Full(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.__getitem__:
                raise torch.OutOfMemoryError("no room for the values")
            return super().__torch_function__(func, types, args, kwargs or {})

    broken = copy.copy(cache)
    broken.layers = [copy.copy(layer) for layer in cache.layers]
    broken.layers[-1].values = cache.layers[-1].values.as_subclass(Full)
    return broken


def test_closing_while_a_newcomer_is_prepared(make_engine: Any) -> None:
    engine = make_engine("llama", max_stall=1e-9)
    job, gate = held(engine, n=100)
    newcomer = engine._submit([ask(documents=LONG, memory=replace(STRONG, steps=50))])[0]
    late: list[Any] = []

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1 and not late:
            late.append(engine._submit([ask("Late?")])[0])
            engine._worker._end()

    handle = engine.model.register_forward_pre_hook(hook, with_kwargs=True)
    gate.go.set()
    assert newcomer.future.result(20).memory.steps == 50
    assert job.future.result(20).token_ids
    until(lambda: late and late[0].done)
    with pytest.raises(EngineClosedError):
        late[0].future.result(0)
    handle.remove()
    engine.close()


class Reads(TorchFunctionMode):
    """Counts calls that would wait for a GPU: copies of tensors to the CPU and to numbers."""

    NAMES = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["greedy", "sampled", "contrasted", "logprobs", "cad", "penalised"])
def test_a_step_reads_nothing_back_but_the_chosen_tokens(engine: Engine, kind: str) -> None:
    sampling = {
        "sampled": Sampling(6, temperature=0.8, top_p=0.9, top_k=20, min_p=0.01, seed=1),
        "penalised": Sampling(6, repetition_penalty=1.3, logit_bias={5: 1.0}),
    }.get(kind, Sampling(6))
    prompts = [prompt_ids(engine, ask(documents=FACTS)), prompt_ids(engine, ask("Why?"))]
    handle = engine.memorize(FACTS, replace(STRONG, contrast=0.5, gate="support"))
    rows = [Row(sampling, 6, logprobs=2 if kind == "logprobs" else None) for _ in prompts]
    if kind == "contrasted":
        prompt = engine._prompts.build(ask(documents=FACTS).messages, ask(documents=FACTS).documents)
        rows = [replace(row, adapter=handle.adapter, rules=_rules(handle.settings, prompt)) for row in rows]
    if kind == "cad":
        rows[0].cad = Cad(0.5)
        prompts.append(prompts[1])
    loop = Loop(engine._backbone, engine.tokenizer)
    loop.add(prefill(engine._backbone, prompts, 0), rows)
    loop.step()
    with Reads() as reads:
        loop.step()
    assert reads.found == ["tolist"]


def test_the_pace_follows_the_time_that_passes_take() -> None:
    pace = Pace(0.1)
    assert pace.tokens == 32
    pace.ran(1000, 1.0)
    assert pace.tokens == 100
    pace.ran(10_000, 1.0)
    assert pace.tokens == 550
    assert pace.columns(4) == 137
    assert pace.columns(100) == 32


def test_a_script_is_said_to_its_end_while_others_come_and_go(make_engine: Any) -> None:
    engine = make_engine("llama", max_batch=3, max_stall=1e-9)
    text = "Colours are red, green and blue. Numbers are one, two and three. " * 2
    job = engine._submit([ask(processors=[Say(engine, text)], sampling=Sampling(150))])[0]
    others = [Request(f"Why {n}?", documents=LONG[: n % 3], sampling=Sampling(1 + n % 5)) for n in range(12)]
    answers = [engine._submit([other])[0] for other in others]
    assert [a.future.result(30).token_ids for a in answers] == [generated(engine, other) for other in others]
    assert job.future.result(30).text == text
