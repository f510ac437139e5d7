"""The cost per generated token of computing the base model's distribution in addition to the memorized one.

    python benchmarks/gate.py                # Qwen2.5-0.5B's shape, random weights, float32: 2 GB
    python benchmarks/gate.py --shape small

Decodes over a prefilled cache with LoRA memories: without a rule, with the support gate, with contrast. The batches are
one row; eight rows, of which six have a memory and four a rule; and eight rows that all have a rule. The weights are
random, so only the time is meaningful. CPU time is measured, because other work on a shared core does not change it.
Every repetition runs all variants in turn, each time in another order. Ratios are medians of the ratios within a
repetition. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from costs.models import SHAPES, word_tokenizer
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from memograft import Sampling
from memograft.decoding.contrast import Contrast
from memograft.decoding.loop import decode
from memograft.decoding.row import Row
from memograft.decoding.rule import Rule
from memograft.decoding.support import SupportGate
from memograft.evaluation.provenance import provenance
from memograft.model.adapter import Adapter
from memograft.model.backbone import Backbone, linear_shape
from memograft.model.prefill import prefill

RANK, HEAD_WIDTH = 16, 64
Rules = Callable[[], Sequence[Rule]]


def build(shape: str, dtype: torch.dtype, new_tokens: int) -> Backbone:
    torch.manual_seed(0)
    heads = SHAPES[shape]["hidden_size"] // HEAD_WIDTH
    config = Qwen2Config(
        **SHAPES[shape],
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    model.generation_config.min_new_tokens = new_tokens  # all rows generate the same number of tokens
    return Backbone.of(model)


def memory(backbone: Backbone) -> Adapter:
    a, b = {}, {}
    for name, module in backbone.projections.items():
        inside, out = linear_shape(module) or (0, 0)
        a[name], b[name] = torch.randn(RANK, inside) * 0.02, torch.randn(out, RANK) * 0.02
    return Adapter(a, b)


def contestants(backbone: Backbone, tokens: int, new_tokens: int) -> dict[str, dict[str, Callable[[], float]]]:
    """For each batch and each rule, a function that decodes it and returns CPU seconds per token of all rows."""
    tokenizer = word_tokenizer()
    vocabulary = backbone.model.config.vocab_size  # type: ignore[union-attr]
    ids = [[random.randrange(3, vocabulary) for _ in range(tokens)] for _ in range(8)]
    filled = {count: prefill(backbone, ids[:count], 0) for count in (1, 8)}
    plain = Row(Sampling(), new_tokens)
    memorized = [replace(plain, adapter=memory(backbone)) for _ in range(8)]
    rules: dict[str, Rules] = {
        "no rule": lambda: (),
        "support gate": lambda: [SupportGate(ids[0])],
        "contrast": lambda: [Contrast(0.5)],
    }

    def run(batch: Sequence[Row], ruled: int, ways: Rules) -> float:
        rows = [replace(row, tokens=[], rules=ways() if n < ruled else ()) for n, row in enumerate(batch)]
        start = filled[len(rows)]
        start = replace(start, kv_cache=copy.deepcopy(start.kv_cache))
        began = time.process_time()
        decode(backbone, start, rows, tokenizer)
        seconds = time.process_time() - began
        assert all(len(row.tokens) == new_tokens for row in rows)
        return seconds / new_tokens

    batches = {
        "1 row": (memorized[:1], 1),
        "8 rows, 4 with a rule": ([*memorized[:6], plain, plain], 4),
        "8 rows, 8 with a rule": (memorized, 8),
    }

    def each(batch: Sequence[Row], ruled: int) -> dict[str, Callable[[], float]]:
        return {name: lambda ways=ways: run(batch, ruled, ways) for name, ways in rules.items()}  # type: ignore[misc]

    return {title: each(*batch) for title, batch in batches.items()}


def measure(runners: dict[str, Callable[[], float]], repeat: int, title: str) -> dict[str, dict[str, Any]]:
    """Each variant's median CPU seconds per token, and its ratio to the first variant: median, least and most."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in tqdm(range(repeat), desc=title):
        for name in random.sample(list(runners), len(runners)):
            seconds[name].append(runners[name]())
    base = seconds[next(iter(runners))]
    results = {}
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        results[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
            "cpu_milliseconds": round(statistics.median(times) * 1e3, 1),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen-0.5b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=256, help="of the prompts")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    backbone = build(args.shape, getattr(torch, args.dtype), args.new_tokens)
    results: dict[str, Any] = {}
    print("| batch | rule | time per token, no rule = 1 | CPU ms |\n|---|---|---|---|")
    for title, runners in contestants(backbone, args.tokens, args.new_tokens).items():
        results[title] = measure(runners, args.repeat, title)
        for name, row in results[title].items():
            print(f"| {title} | {name} | {row['ratio']:.3f} | {row['cpu_milliseconds']:.1f} |", flush=True)
    record = {
        "benchmark": "gate",
        "model": f"qwen2, random weights, {args.shape}: {SHAPES[args.shape]}",
        "prompt_tokens": args.tokens,
        "new_tokens": args.new_tokens,
        "rank": RANK,
        "results": results,
        "repetitions": args.repeat,
        "dtype": args.dtype,
        **provenance(backbone.device),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
