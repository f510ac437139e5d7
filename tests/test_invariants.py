"""A table of memories, and invariants that hold for each of them, for several families."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from families import build
from macs import saved_mac
from memograft import Answer, Compacted, Engine, FastMem, Kept, Mac, MacBank, Request
from memograft.errors import RequestCancelledError
from memograft.memory.fastmem import train
from test_engine import FACTS, ask, generated, prompt_ids

LORA = FastMem(steps=3, learning_rate=0.05, rank=4, target_kl=None, max_kl=1e9, fallback=False, relevance=None)


@dataclass(frozen=True)
class Case:
    settings: FastMem | Kept
    kept: bool = False  # as a handle of Engine.memorize
    banked: str = ""  # with a bank of modulations, which become this
    relevance: float | None = None  # with which a document is used instead of the bank

    def memory(self, engine: Engine, documents: list[str] = FACTS) -> Any:
        settings = self.of(engine)
        return engine.memorize(documents, settings) if self.kept else settings

    def of(self, engine: Engine) -> FastMem | Kept:
        if not self.banked:
            return self.settings
        key = (engine, self.banked)
        if key not in _BANKS:
            _BANKS[key] = folder = tempfile.TemporaryDirectory()
            mac = saved_mac(engine, Path(folder.name) / "mac", modulation=self.banked)
            bank = MacBank(Path(folder.name) / "bank", mac)
            bank.add(engine, ["Bergen is a town.", "A sailor wrote it."], progress=False)
        assert isinstance(self.settings, FastMem)
        return Mac(str(Path(_BANKS[key].name) / "bank"), relevance=self.relevance, memory=self.settings)


_BANKS: dict[tuple[Engine, str], tempfile.TemporaryDirectory[str]] = {}


MEMORIES = {
    "lora": Case(LORA),
    "full": Case(replace(LORA, adapter="full", learning_rate=0.01)),
    "paper": Case(FastMem.paper(steps=3, learning_rate=0.01, target_kl=None, max_kl=1e9, fallback=False)),
    "assistant": Case(replace(LORA, template="assistant")),
    "gated": Case(replace(LORA, gate="support")),
    "contrasted": Case(replace(LORA, contrast=0.5)),
    "composed": Case(replace(LORA, compose=True)),
    "composed-full": Case(replace(LORA, compose=True, adapter="full", learning_rate=0.01)),
    "handle": Case(LORA, kept=True),
    "composed-handle": Case(replace(LORA, compose=True), kept=True),
    "compacted": Case(Compacted(LORA, 4)),
    "kept-handle": Case(Kept(LORA), kept=True),
    "compacted-handle": Case(Compacted(LORA, 4), kept=True),
    "mac": Case(LORA, banked="prefix"),
    "mac-handle": Case(LORA, kept=True, banked="prefix"),
    "mac-lora": Case(LORA, banked="lora"),
    "mac-lora-handle": Case(LORA, kept=True, banked="lora"),
    "mac-documents": Case(LORA, banked="prefix", relevance=-1),
    "mac-documents-handle": Case(LORA, kept=True, banked="prefix", relevance=-1),
    "full-handle": Case(replace(LORA, adapter="full", learning_rate=0.01), kept=True),
}
FAMILIES = ["llama", "olmo2"]


class Fails(LogitsProcessor):
    """Raises at the third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise ZeroDivisionError("on purpose")
        return scores


def state(model: Any) -> dict[str, Any]:
    """Everything about a model and the process that must not change."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks", "_backward_pre_hooks")
    return {
        "values": {name: t.detach().clone() for name, t in tensors},
        "identity": {name: (id(t), t.data_ptr(), t.requires_grad, t.grad, t._version) for name, t in tensors},
        "hooks": {name: [len(getattr(m, h)) for h in hooks] for name, m in model.named_modules()},
        "modules": {name: (id(m), m.training, "forward" in vars(m)) for name, m in model.named_modules()},
        "config": (model.config.to_dict(), model.generation_config.to_dict()),
        "random": (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def changed(before: dict[str, Any], model: Any) -> list[str]:
    return [part for part, value in state(model).items() if not same(value, before[part])]


@pytest.fixture(scope="module")
def engines(tokenizer: Any) -> Any:
    made: dict[str, Engine] = {}

    def get(family: str) -> Engine:
        if family not in made:
            made[family] = Engine(build(family, seed=2), tokenizer)
        return made[family]

    yield get
    for engine in made.values():
        engine.close()
        if engine in _BANKS:
            _BANKS.pop(engine).cleanup()


def logits(engine: Engine) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(torch.tensor([prompt_ids(engine, ask(documents=FACTS))])).logits


def request(memory: Any, n: int = 6, **options: Any) -> Request:
    return ask(n=n, documents=FACTS, memory=memory, **options)


def answered(engine: Engine, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answer(request(memory))


def failed(engine: Engine, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        engine.answer(request(memory, processors=[Fails()]))


def cancelled(engine: Engine, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []

    class Cancels(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            jobs[0].cancel()
            return scores

    jobs += engine._submit([request(memory, n=50, processors=[Cancels()])])
    with pytest.raises(RequestCancelledError):
        jobs[0].future.result(20)
    engine.answer(ask(n=1))


def out_of_memory(engine: Engine, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise OutOfMemoryError in the second step, while its adapter is active, and in every retry."""
    real, calls = train.Objective.loss, []

    def loss(self: Any, part: slice) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("on purpose")
        return real(self, part)

    monkeypatch.setattr(train.Objective, "loss", loss)
    settings = memory.settings if hasattr(memory, "settings") else memory
    answer = engine.answer(request(settings))
    assert answer.memory is not None
    assert "out of memory" in (answer.memory.reason or "")
    without = replace(settings, memory=None) if isinstance(settings, Kept) else None
    assert answer.token_ids == (
        engine.answer(request(without)).token_ids if without else generated(engine, request(None))
    )


ENDS: list[Callable[..., None]] = [answered, failed, cancelled, out_of_memory]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_model_stays_as_it_was(
    engines: Any, family: str, name: str, end: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: weights, gradients, hooks and modes, answers without a memory, and the global random state."""
    engine = engines(family)
    expected, before = logits(engine), state(engine.model)
    end(engine, MEMORIES[name].memory(engine), monkeypatch)
    assert not changed(before, engine.model)
    assert torch.equal(logits(engine), expected)


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("family", FAMILIES)
class TestEveryMemory:
    def test_off_is_the_base_model(self, engines: Any, family: str, name: str) -> None:
        """Also in a batch with rows that have memories with an effect."""
        engine = engines(family)
        memory = MEMORIES[name].memory(engine)
        answers: list[Answer] = engine.answer_batch([request(memory), request(None), request(memory), ask()])
        assert answers[1].token_ids == generated(engine, request(None))
        assert answers[3].token_ids == generated(engine, ask())
        assert answers[0].token_ids == answers[2].token_ids
        assert answers[1].memory is None

    def test_it_changes_what_is_said(self, engines: Any, family: str, name: str) -> None:
        engine = engines(family)
        answer = engine.answer(request(MEMORIES[name].memory(engine), n=16))
        assert answer.memory is not None
        assert not answer.memory.rolled_back, answer.memory.reason
        assert answer.memory.loss_after < answer.memory.loss_before
        if name != "gated":
            assert answer.token_ids != engine.answer(request(None, n=16)).token_ids

    def test_it_is_repeatable(self, engines: Any, family: str, name: str) -> None:
        """Independent of the global random state."""
        engine = engines(family)
        results = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            memory = MEMORIES[name].memory(engine)
            answer = engine.answer(request(memory))
            assert answer.memory is not None
            results.append((answer.token_ids, answer.memory.losses, answer.memory.loss_after, answer.memory.kl))
        assert results[0] == results[1]

    def test_it_does_not_leak(self, engines: Any, family: str, name: str) -> None:
        """Requests with contradicting documents in one batch get the same results as alone."""
        engine = engines(family)
        case, sets = MEMORIES[name], [["The capital is Paris."], ["The capital is not Paris but Rome, or Oslo."]]
        requests = [ask(documents=d, memory=case.memory(engine, d)) for d in sets]
        alone = [engine.answer(r) for r in requests]
        for order in ([0, 1], [1, 0], [1, 1]):
            together = engine.answer_batch([requests[n] for n in order])
            assert [a.token_ids for a in together] == [alone[n].token_ids for n in order]

    def test_saved_and_loaded(self, engines: Any, family: str, name: str, tmp_path: Path) -> None:
        engine = engines(family)
        handle = engine.memorize(FACTS, MEMORIES[name].of(engine))
        again = engine.load_memory(handle.save(tmp_path / "memory"))
        assert (again.id, again.settings, again.report) == (handle.id, handle.settings, handle.report)
        assert handle.adapter is not None
        assert again.adapter is not None
        for ours, theirs in (
            (handle.adapter.lora_a, again.adapter.lora_a),
            (handle.adapter.lora_b, again.adapter.lora_b),
        ):
            assert same(dict(ours), dict(theirs))
        assert engine.answer(request(again)).token_ids == engine.answer(request(handle)).token_ids
