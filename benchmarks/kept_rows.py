"""The cost of a batch in which every row has its own kept memory: SmolLM2, with as many users as rows.

    python benchmarks/kept_rows.py
    python benchmarks/kept_rows.py --rows 4 --repeat 2

Plain rows have their documents in the prompt. Kept rows have the keys, values and weights of a kept memory. Bare rows
have no documents. All generate the same number of tokens, greedily. CPU time is measured, because other work on a
shared core does not change it. The time of decoding is that of all tokens minus that of one token. Every repetition
runs all variants in turn, each time in another order. Ratios are medians of the ratios within a repetition. Prints a
table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from memograft import Answer, Engine, FastMem, Request, Sampling
from memograft.evaluation.provenance import provenance

# Only the cost of a row with an adapter is measured: no relevance check, and no second row for the fallback.
MEMORY = FastMem(relevance=None, target_kl=None, max_kl=1e9, fallback=False)
WORDS = ("harbour", "mill", "orchard", "lantern", "bridge", "archive", "kiln", "garden", "tower", "ferry", "quarry")
QUESTIONS = ("Where is it?", "Who looks after the oldest of them?", "In which year was it opened, and by whom?")
PLAIN, KEPT, BARE, SINGLY, BESIDE = "plain", "kept", "bare", "kept, one by one", "kept, with fallback"

Runner = Callable[[int], Sequence[Answer]]


def document(engine: Engine, number: int, tokens: int) -> str:
    """A text of about this number of tokens, which differs for each number."""
    rng, text = random.Random(number), ""
    while len(engine.encode(text)) < tokens:
        first, second = rng.sample(WORDS, 2)
        text += f"The {first} of place {number} was opened in {rng.randint(1500, 1999)} behind the {second}. "
    return text


def contestants(engine: Engine, rows: int, tokens: int) -> dict[str, Runner]:
    """Name -> a function that takes the number of new tokens and returns the answers."""
    texts = [[document(engine, n, tokens)] for n in range(rows)]
    asked = [QUESTIONS[n % len(QUESTIONS)] for n in range(rows)]
    handles = [engine.memorize(text, replace(MEMORY, seed=n)) for n, text in enumerate(tqdm(texts, desc="memorizing"))]
    assert all(handle.adapter is not None and handle.segment is not None for handle in handles)
    beside = [replace(handle, settings=replace(handle.settings, fallback=True)) for handle in handles]

    def batch(requests: Sequence[Request], new: int) -> list[Answer]:
        return engine.answer_batch([replace(request, sampling=Sampling(new)) for request in requests])

    plain = [Request(q, documents=text) for q, text in zip(asked, texts, strict=True)]
    kept = [Request(q, memory=handle) for q, handle in zip(asked, handles, strict=True)]
    doubled = [Request(q, memory=handle) for q, handle in zip(asked, beside, strict=True)]
    bare = [Request(q) for q in asked]
    return {
        PLAIN: lambda new: batch(plain, new),
        KEPT: lambda new: batch(kept, new),
        BARE: lambda new: batch(bare, new),
        SINGLY: lambda new: [answer for request in kept for answer in batch([request], new)],
        BESIDE: lambda new: batch(doubled, new),
    }


def seconds(engine: Engine, run: Runner, new: int) -> tuple[float, Sequence[Answer]]:
    """CPU seconds for `new` tokens in each row, and the answers."""
    engine.model.generation_config.min_new_tokens = new
    began = time.process_time()
    answers = run(new)
    spent = time.process_time() - began
    assert all(len(answer.token_ids) == new for answer in answers)
    return spent, answers


def measure(engine: Engine, runners: dict[str, Runner], new: int, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """For each variant and repetition: seconds for all tokens, and seconds for all tokens but the first."""
    rng, spent = random.Random(0), {name: list[tuple[float, float]]() for name in runners}
    for turn in tqdm(range(repeat + 1), desc="repetitions"):
        for name in rng.sample(list(runners), len(runners)):
            first, _ = seconds(engine, runners[name], 1)
            whole, answers = seconds(engine, runners[name], new)
            assert all((answer.usage.cached_tokens > 0) == name.startswith(KEPT) for answer in answers)
            if turn:  # the first one is a warm-up
                spent[name].append((whole, whole - first))
    return spent


def results(spent: dict[str, list[tuple[float, float]]], rows: int, new: int) -> dict[str, dict[str, float]]:
    """Tokens per CPU second of all rows, and throughput divided by that of plain rows."""
    table: dict[str, dict[str, float]] = {}
    for name, times in spent.items():
        table[name] = {}
        for part, (label, count) in enumerate((("total", rows * new), ("decode", rows * (new - 1)))):
            ratios = [base[part] / own[part] for own, base in zip(times, spent[PLAIN], strict=True)]
            table[name][f"{label}_tokens_per_second"] = round(count / statistics.median(t[part] for t in times), 2)
            table[name][f"{label}_ratio"] = round(statistics.median(ratios), 3)
            table[name][f"{label}_ratio_least"] = round(min(ratios), 3)
            table[name][f"{label}_ratio_most"] = round(max(ratios), 3)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=300, help="of each document")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with Engine.from_pretrained(args.model, max_batch=args.rows) as engine:
        runners = contestants(engine, args.rows, args.tokens)
        found = results(measure(engine, runners, args.new_tokens, args.repeat), args.rows, args.new_tokens)
    print(f"| {args.rows} rows | total, tokens/s | plain = 1 | decode, tokens/s | plain = 1 |\n|---|---|---|---|---|")
    for name, row in found.items():
        cells = [f"{row[f'{part}_tokens_per_second']:.1f} | {row[f'{part}_ratio']:.2f}" for part in ("total", "decode")]
        print(f"| {name} | {' | '.join(cells)} |")
    record = {
        "benchmark": "kept_rows",
        "model": args.model,
        "rows": args.rows,
        "document_tokens": args.tokens,
        "new_tokens": args.new_tokens,
        "repetitions": args.repeat,
        "threads": args.threads,
        "results": found,
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
