"""Speed and additional memory for `rtd_choice.py`, and whether its scores are equal to those of the engine."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from choice.bench import Bench, trained
from choice.forms import Scores, Settings, by_labels, conversations, examples
from choice.reading import Message, read, search
from choice.sets import Question
from memograft import Datastore, Engine, Request, Rtd
from memograft.model.prefill import prefill_segment

Tuned = dict[str, dict[str, Any]]
PROMPTS, QUESTIONS, CHECKED, LEARNED = 32, 12, 8, 64
CLOSE = 1e-3  # limit for the difference of two scores, in nats: rounding depends on the batch size


def rtd(store: Datastore, settings: dict[str, Any]) -> Rtd:
    """The processor with the tuned settings."""
    return Rtd(store, **{name: settings[name] for name in ("k", "heads", "weight", "gate")})


def compared(bench: Bench, tuned: Tuned) -> dict[str, Any]:
    """Ask some questions of the engine with datastores of `Datastore.build`, and compare its scores with those here.

    The form "text" is asked by `Engine.choose`, with and without an `Rtd`; "label" by `Engine.next_token_logprobs`. A
    state at the gate's limit may be on either side of it; the scores of such options differ.
    """
    questions, learners = bench.questions.test[:CHECKED], bench.draw(0)[0][:LEARNED]

    def choose(question: Question, *processors: Rtd) -> Any:
        return bench.engine.choose(question.text, question.options, processors=processors).scores

    plain = bench.ask(questions, "text").plain()
    pairs: list[tuple[Scores, list[Any]]] = [(plain, [choose(question) for question in questions])]
    for form, name in itertools.product(("text", "label"), ("RTD", "MH-RTD")):
        settings, asked = tuned[form][name], bench.ask(questions, form)
        with Datastore.build(
            bench.engine, examples(learners, form, (), 0), place=settings["place"], progress=False
        ) as built:
            # `calibrate` samples entries by their order, so its temperature depends on it.
            found = search(built, asked.got.states[settings["place"]], settings["k"], settings["heads"])
            steered = asked.steered(found, Settings(**settings))
            if form == "text":
                said = [choose(question, rtd(built, settings)) for question in questions]
            else:
                said = [by_labels(bench.engine, question, built, Settings(**settings)) for question in questions]
            pairs.append((steered, said))
    each = [(here, there) for pair in pairs for here, there in zip(*pair, strict=True) if here is not None]
    return {
        "compared": len(each),
        "same_choice": sum(int(here.argmax()) == int(np.argmax(there)) for here, there in each),
        "same_scores": sum(bool(np.allclose(here, there, atol=CLOSE)) for here, there in each),
    }


def speed(bench: Bench, tuned: Tuned, repeat: int) -> dict[str, Any]:
    """CPU time of all methods, measured in turn, and the memory that each needs, on the set of `bench`."""
    engine, questions = bench.engine, bench.questions.test
    chosen, shots = bench.draw(0)
    single, heads = tuned["label"]["RTD"], tuned["label"]["MH-RTD"]
    fit = tuned["label"]["probe"]
    short = [m for m, _ in conversations(questions[:PROMPTS], "label", (), 0)][:: len(questions[0].options)]
    long = [m for m, _ in conversations(questions[:PROMPTS], "label", shots, 0)][:: len(questions[0].options)]
    fitting = [n for n, m in enumerate(long) if _tokens(engine, m) < engine.max_length * 7 // 8]
    short, long = [short[n] for n in fitting], [long[n] for n in fitting]
    example_list = examples(chosen, "label", (), 0)
    with (
        Datastore.build(engine, example_list, place=single["place"], progress=False) as one,
        Datastore.build(engine, example_list, place=heads["place"], progress=False) as many,
    ):
        probe = trained("label", bench.learn(chosen, "label"), chosen, *fit)

        def ask(prompts: list[list[Message]], *processors: Rtd) -> Callable[[int], Any]:
            return lambda n: engine.next_token_logprobs(Request(messages=prompts[n], processors=processors))

        def by_probe(n: int) -> Any:
            return probe.predict_log_proba(read(engine, [(short[n], "A")], batch=1).states[fit[0]][:1])  # type: ignore[union-attr]

        steer, steer_heads = rtd(one, single), rtd(many, heads)
        prompts = {
            "zero-shot": ask(short),
            f"{bench.shots}-shot": ask(long),
            "RTD": ask(short, steer),
            "MH-RTD": ask(short, steer_heads),
            f"{bench.shots}-shot + RTD": ask(long, steer),
            "linear probe": by_probe,
        }

        def choose(**how: Any) -> Callable[[int], Any]:
            return lambda n: engine.choose(questions[n].text, questions[n].options, **how)

        def label(store: Datastore, settings: dict[str, Any]) -> Callable[[int], Any]:
            return lambda n: by_labels(engine, questions[n], store, Settings(**settings))

        whole = {
            "choose": choose(),
            "choose, with RTD": choose(processors=[rtd(one, single | {"weight": 0.3, "gate": "auto"})]),
            "labels by RTD": label(one, single),
            "labels by MH-RTD": label(many, heads),
        }
        per_prompt = _timed(prompts, len(short), repeat, "prompts")
        per_question = _timed(whole, min(QUESTIONS, len(questions)), repeat, "questions")
        files = sum(file.stat().st_size for file in one.path.iterdir() if file.is_file())
        entries, width = len(one), one.header.dimension
    lengths = [statistics.mean(_tokens(engine, m) for m in which) for which in (short, long)]
    per_token = _kv_bytes(engine, short[0])
    return {
        "set": bench.questions.name,
        "prompts_per_second": per_prompt,
        "questions_per_second": per_question,
        "tokens_of_a_prompt": {"zero-shot": round(lengths[0], 1), f"{bench.shots}-shot": round(lengths[1], 1)},
        "memory": {
            "datastore_entries": entries,
            "datastore_bytes_on_disk": files,
            "datastore_key_bytes": entries * width * 4,
            "multi_head_copy_bytes": entries * width * 4,
            "kv_cache_bytes_per_token": round(per_token),
            "kv_cache_bytes_of_the_shots_per_prompt": round(per_token * (lengths[1] - lengths[0])),
        },
    }


def shown(found: dict[str, Any]) -> str:
    """The results of `speed` as tables."""
    lines = [f"\n| one prompt with labels, {found['set']} | prompts per CPU second | zero-shot = 1 |", "|---|---|---|"]
    lines += _lines(found["prompts_per_second"])
    lines += ["\n| one question | questions per CPU second | `Engine.choose` = 1 |", "|---|---|---|"]
    lines += _lines(found["questions_per_second"])
    memory = {name: f"{value:,}" for name, value in found["memory"].items()}
    lines.append(
        f"\nExtra memory: datastore of {memory['datastore_entries']} entries, {memory['datastore_bytes_on_disk']} "
        f"bytes on disk, once for all prompts; with heads {memory['multi_head_copy_bytes']} bytes more in memory; the "
        f"shots {memory['kv_cache_bytes_of_the_shots_per_prompt']} bytes of keys and values in every prompt."
    )
    return "\n".join(lines)


def _lines(times: dict[str, Any]) -> list[str]:
    return [f"| {name} | {row['per_second']:.1f} | {row['ratio']:.2f} |" for name, row in times.items()]


def _timed(ways: dict[str, Callable[[int], Any]], count: int, repeat: int, unit: str) -> dict[str, Any]:
    """Run all methods in turn, each time in another order; the first repetition is a warm-up. Ratios are medians."""
    rng, seconds = random.Random(0), {name: list[float]() for name in ways}
    for turn in tqdm(range(repeat + 1), desc=unit):
        for name in rng.sample(list(ways), len(ways)):
            began = time.process_time()
            for n in range(count):
                ways[name](n)
            if turn:
                seconds[name].append((time.process_time() - began) / count)
    base = seconds[next(iter(ways))]
    return {
        name: {
            "per_second": round(1 / statistics.median(times), 1),
            "ratio": round(statistics.median(b / t for t, b in zip(times, base, strict=True)), 3),
        }
        for name, times in seconds.items()
    }


def _tokens(engine: Engine, messages: list[Message]) -> int:
    return len(engine.with_model(lambda _, builder: builder.build(messages, ()).ids))


def _kv_bytes(engine: Engine, messages: list[Message]) -> float:
    """Bytes of the keys and values of one token."""

    def of(backbone: Any, builder: Any) -> float:
        ids = builder.build(messages, ()).ids
        cache: Any = prefill_segment(backbone, ids).kv_cache
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / len(ids)

    return engine.with_model(of)
