"""The time of decoding: rows with memories beside `generate`, contrasts, whole answers, and drafts from the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from costs.clock import Line, Times, of_ratio, spent, turns
from memograft import Engine, FastMem
from memograft.decoding.contrast import Contrast
from memograft.decoding.dola import Dola
from memograft.decoding.loop import Loop
from memograft.decoding.row import Row
from memograft.evaluation.lessons import Lessons
from memograft.evaluation.methods import METHODS
from memograft.evaluation.readers.reading import read
from memograft.memory.base import Task, Wanted
from memograft.model.backbone import cache_name
from memograft.model.kv import Prefill
from memograft.model.packed import copied
from memograft.model.prefill import prefill, prefill_behind
from memograft.request import Sampling

__all__ = ["answers", "contrasts", "drafts", "many_memories"]

TOKENS, LONGEST = 32, 48
COMPARED = ("CAD", "AdaCAD", "DoLa", "memorized", "memorized, contrast 0.5", "memorized, CAD", "memorized, AdaCAD")
COMPARED += ("memorized, DoLa", "memorized, faithful")
NEVER = 5  # a special token of SmolLM2 that no answer has
# Every row has a memory, and no second row for the fallback.
MEMORY = FastMem(relevance=None, target_kl=None, max_kl=1e9, fallback=False)
FORMS = {
    "short answers": "{}",
    "quotations": "{} Quote the sentence of the document that says so.",
    "explanations": "{} Explain in three sentences.",
}


def many_memories(data: str, rows: int, repeat: int) -> list[Line]:
    """Tokens per second while decoding: `rows` rows with a memory each, and without, beside plain `generate`."""
    items = read(data, contexts=["contradicts"], split="test", n=rows * (repeat + 1)).items
    times: dict[str, list[Times]] = {}
    with Engine.from_pretrained("smollm2") as engine:
        engine.model.generation_config.eos_token_id = NEVER  # all generate the same number of tokens
        model = engine._model
        for start in tqdm(range(0, len(items), rows), desc="many memories"):
            prompts = [
                model.prompts.build([{"role": "user", "content": item.question}], item.documents)
                for item in items[start : start + rows]
            ]
            filled = prefill(model.backbone, [p.ids for p in prompts], model.pad_id)
            wanted = [Wanted(MEMORY.resolved(), prompt, row) for row, prompt in enumerate(prompts)]
            adapters = [brought.adapter for brought in FastMem.prepare(model, wanted, filled, Task())]
            assert all(adapter is not None for adapter in adapters)
            parts: dict[str, Callable[[], object]] = {
                "memories": lambda filled=filled, adapters=adapters: _decode(engine, filled, adapters),
                "plain": lambda filled=filled: _decode(engine, filled, [None] * rows),
                "generate": lambda filled=filled: _generate(engine, filled),
            }
            for name, part in parts.items():
                own = spent(part)
                if start:  # the first batch warms up
                    times.setdefault(name, []).append(own)
    title = f"decoding, tokens per second / generate, SmolLM2, NQ-SWAP, {rows} rows"
    return [
        of_ratio(f"{title} with {rows} memories", times["generate"], times["memories"], target=1.0, at_least=True),
        of_ratio(f"{title} without", times["generate"], times["plain"]),
    ]


def contrasts(data: str, rows: int, repeat: int) -> list[Line]:
    """Time per token of contrasts, for one row and for `rows`: with the base model, the prompt alone, a layer."""
    items, lines = read(data, contexts=["contradicts"], split="test", n=rows).items, []
    with Engine.from_pretrained("smollm2") as engine:
        engine.model.generation_config.eos_token_id = NEVER
        model = engine._model
        for count, most in ((1, 1.15), (rows, 1.6)):
            asked = [[{"role": "user", "content": item.question}] for item in items[:count]]
            pages = [item.documents for item in items[:count]]
            prompts = [model.prompts.build(own, page) for own, page in zip(asked, pages, strict=True)]
            ids = [prompt.ids for prompt in prompts]
            filled = prefill(model.backbone, ids, model.pad_id)
            wanted = [Wanted(MEMORY.resolved(), prompt, row) for row, prompt in enumerate(prompts)]
            adapters = [brought.adapter for brought in FastMem.prepare(model, wanted, filled, Task())]
            echoes = [model.prompts.build(own, ()).ids for own in asked]
            echoed = prefill_behind(model.backbone, filled, ids, echoes, model.pad_id)
            memorized = [{"adapter": adapter} for adapter in adapters]
            ways: dict[str, tuple[Prefill, list[dict[str, Any]]]] = {
                "memorized": (filled, memorized),
                "contrast": (filled, [{**own, "rules": [Contrast(0.5)]} for own in memorized]),
                "plain": (filled, [{}] * count),
                "CAD": (echoed, [{"cad": 0.5}] * count),
                "DoLa": (filled, [{"dola": Dola("low")}] * count),
            }
            parts = {way: partial(_contrasted, engine, *what) for way, what in ways.items()}
            times = turns(parts, repeat, f"contrasts, {count} rows")
            for way, base, target in (("contrast", "memorized", 1.15), ("CAD", "plain", most), ("DoLa", "plain", None)):
                title = f"{way}, time per token / {base}, SmolLM2, NQ-SWAP, rows: {count}"
                lines.append(of_ratio(title, times[way], times[base], target=target))
    return lines


def answers(data: str, rows: int, repeat: int) -> list[Line]:
    """Time of whole answers of at most 40 tokens, as `memograft eval` asks them: other questions each time."""
    items = read(data, contexts=["contradicts"], split="test", n=rows * (repeat + 1)).items
    times: dict[str, list[Times]] = {}
    with Engine.from_pretrained("smollm2") as engine:
        lessons = Lessons(engine, (), items)
        for start in tqdm(range(0, len(items), rows), desc="answers"):
            for way in ("plain", *COMPARED):
                asked = [METHODS[way].request(engine, items, start + n, Sampling(40), lessons) for n in range(rows)]
                own = spent(partial(engine.answer_batch, asked))
                if start:  # the first questions warm up
                    times.setdefault(way, []).append(own)
    title = "answer of at most 40 tokens / plain, SmolLM2, NQ-SWAP, rows"
    return [of_ratio(f"{way}, {title}: {rows}", times[way], times["plain"]) for way in COMPARED]


def drafts(data: str, count: int) -> list[Line]:
    """Decoding with drafts from the prompt, and without, one question at a time; the spread is that of questions.

    Times are per token, because rounding in bf16 may end an answer elsewhere.
    """
    items = read(data, contexts=["agrees"], split="test", n=count).items
    lines = []
    with Engine.from_pretrained("smollm2") as engine:
        model = engine._model
        for form, text in FORMS.items():
            times: dict[int, list[Times]] = {0: [], 8: []}
            for item in tqdm(items, desc=form):
                message = {"role": "user", "content": text.format(item.question)}
                prompt = model.prompts.build([message], item.documents)
                filled = prefill(model.backbone, [prompt.ids], model.pad_id)
                for most, own in times.items():
                    said: list[int] = []
                    whole = spent(partial(_drafted, engine, filled, most, said))
                    own.append(Times(whole.cpu / said[0], whole.wall / said[0]))
            title = f"speed with drafts / without, SmolLM2, NQ-SWAP, {form}"
            lines.append(of_ratio(title, times[0], times[8], target=0.97, at_least=True))
    return lines


def _decode(
    engine: Engine, filled: Prefill, adapters: Sequence[object], tokens: int = TOKENS, most: int = 0
) -> list[int]:
    """Decode, and return the number of new tokens of each row."""
    loop = Loop(engine._backbone, engine.tokenizer, most)
    rows = [Row(Sampling(tokens), tokens, adapter=adapter) for adapter in adapters]  # type: ignore[arg-type]
    loop.add(filled, rows)
    while loop.rows:
        loop.step()
    return [len(row.tokens) + (row.finish_reason == "stop") for row in rows]


def _contrasted(engine: Engine, filled: Prefill, rows: Sequence[dict[str, Any]]) -> None:
    loop = Loop(engine._backbone, engine.tokenizer)
    loop.add(filled, [Row(Sampling(TOKENS), TOKENS, **row) for row in rows])
    while loop.rows:
        loop.step()


def _drafted(engine: Engine, filled: Prefill, most: int, said: list[int]) -> None:
    said += _decode(engine, filled, [None], LONGEST, most)


def _generate(engine: Engine, filled: Prefill) -> None:
    assert filled.kv_cache is not None
    with torch.inference_mode():
        engine.model.generate(
            input_ids=filled.ids,
            attention_mask=filled.mask,
            max_new_tokens=TOKENS,
            do_sample=False,
            **{cache_name(type(engine.model).prepare_inputs_for_generation): copied(filled.kv_cache)},
        )
