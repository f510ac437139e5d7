"""What answering with a memory costs beside plain decoding, for a shape with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from costs.clock import Line, Times, of_ratio, turns
from costs.memorizing import QUESTION, RANDOM
from costs.models import document, random_engine
from memograft import Compacted, Engine, Gist, Kept, Memory, MemoryHandle, Request, Sampling
from memograft.memory.compact.keys import compacted
from memograft.memory.gist import folder
from memograft.memory.gist.compress import Opening, parts
from memograft.memory.gist.data import Batch
from memograft.memory.gist.train import GistTraining, fresh
from memograft.model.backbone import Backbone
from memograft.model.prefill import prefill_segment
from memograft.prompt.builder import PromptBuilder

__all__ = ["carried", "compacting", "contrast", "kept"]

TOKENS = 32


def kept(name: str, tokens: int, target: float, repeat: int) -> list[Line]:
    """The time to the first token with a kept memory, whose relevance is judged or not, and of `generate`."""
    ways = {"relevance judged": RANDOM, "relevance not judged": replace(RANDOM, relevance=None)}
    with random_engine(name) as engine:
        handles = {way: engine.memorize([document(tokens)], memory) for way, memory in ways.items()}
        requests = {way: Request(QUESTION, memory=handle, sampling=Sampling(1)) for way, handle in handles.items()}
        times = _first_tokens(engine, requests, repeat, f"{name}, kept")
    title = f"time to the first token, kept context / generate, {name}, T {tokens:,}"
    return [of_ratio(f"{title}, {way}", times[way], times["generate"], target=target) for way in ways]


def carried(name: str, tokens: int, targets: Mapping[str, float], repeat: int) -> list[Line]:
    """The time to the first token with kept and compacted keys and values, an untrained gist, and of `generate`."""
    with random_engine(name) as engine, TemporaryDirectory() as place:
        _untrained_gist(engine, Path(place) / "gist", tokens)
        gist = Gist(str(Path(place) / "gist"))
        memories: dict[str, Memory] = {"kept": Kept(), "compacted": Compacted(ratio=10), "gist": gist}
        requests = {
            way: Request(QUESTION, memory=engine.memorize([document(tokens)], memory), sampling=Sampling(1))
            for way, memory in memories.items()
        }
        times = _first_tokens(engine, requests, repeat, f"{name}, carried")
    title = f"time to the first token, {{}} / generate, {name}, T {tokens:,}"
    return [of_ratio(title.format(way), times[way], times["generate"], target=targets[way]) for way in requests]


def _untrained_gist(engine: Engine, path: Path, tokens: int) -> None:
    """A gist of ten tokens for documents of up to `tokens` and the template's, which costs as much as a trained one."""

    def write(backbone: Backbone, prompts: PromptBuilder) -> None:
        settings = GistTraining(tokens=10, window=tokens + 64, rank=8)
        text = tuple(parts(prompts, document(64), settings.window)[0])
        weights = fresh(backbone, settings, Batch((text,), (), Opening(text[:1], 1)), 0)
        folder.write(path, weights, backbone, engine.fingerprint, {"steps": 0})

    engine.with_model(write)


def compacting(name: str, tokens: int, target: float, repeat: int) -> list[Line]:
    """The time to compact a document to a tenth and to a fourth, and of its prefill."""

    def timed(backbone: Backbone, prompts: PromptBuilder) -> dict[str, list[Times]]:
        prompt = prompts.build([{"role": "user", "content": QUESTION}], [document(tokens)])
        ids, start = prompt.ids[: prompt.spans[0][1]], prompt.spans[0][0]
        segment = prefill_segment(backbone, ids)
        parts: dict[str, Callable[[], object]] = {"prefill": lambda: prefill_segment(backbone, ids)}
        parts |= {f"{n}x": partial(compacted, backbone, segment, start, n, prompt.ids[len(ids) :]) for n in (10, 4)}
        return turns(parts, repeat, f"{name}, compacting")

    with random_engine(name) as engine:
        times = engine.with_model(timed)
    title = f"compacting {{}} / prefill, {name}, T {tokens:,}"
    return [of_ratio(title.format(way), times[way], times["prefill"], target=target) for way in ("10x", "4x")]


def contrast(name: str, tokens: int, target: float, repeat: int) -> list[Line]:
    """Time per token with `contrast` and without: the difference between answers of 33 tokens and of one."""
    settings = replace(RANDOM, relevance=None, fallback=False)
    with random_engine(name) as engine:
        handles = {
            alpha: engine.memorize([document(tokens)], replace(settings, contrast=alpha)) for alpha in (0.0, 0.5)
        }
        parts = {
            f"{alpha}, {new}": partial(_answer, engine, handle, new)
            for alpha, handle in handles.items()
            for new in (1, TOKENS + 1)
        }
        times = turns(parts, repeat, f"{name}, contrast")
    each = {
        alpha: [long - short for long, short in zip(times[f"{alpha}, {TOKENS + 1}"], times[f"{alpha}, 1"], strict=True)]
        for alpha in handles
    }
    return [of_ratio(f"contrast, time per token / without, {name}", each[0.5], each[0.0], target=target)]


def _first_tokens(engine: Engine, requests: Mapping[str, Request], repeat: int, title: str) -> dict[str, list[Times]]:
    """The times of requests for one token, and of `generate` with the whole prompt."""
    ids = torch.tensor([engine.answer(next(iter(requests.values()))).prompt_ids])
    parts: dict[str, Callable[[], object]] = {
        "generate": lambda: engine.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False
        ),
    }
    parts |= {way: partial(_streamed, engine, request) for way, request in requests.items()}
    return turns(parts, repeat, title)


def _streamed(engine: Engine, request: Request) -> None:
    stream = engine.stream(request)
    list(stream)  # the text of a random token may be empty
    assert stream.answer is not None
    assert stream.answer.usage.cached_tokens > 0


def _answer(engine: Engine, handle: MemoryHandle, new: int) -> None:
    answer = engine.answer(Request(QUESTION, memory=handle, sampling=Sampling(new)))
    assert len(answer.token_ids) == new
    assert answer.memory is not None
    assert not answer.memory.rolled_back
