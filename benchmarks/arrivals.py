"""Requests that arrive one by one while others are answered: throughput and time to the first token, SmolLM2.

    python benchmarks/arrivals.py
    git worktree add ../before v0 && python benchmarks/arrivals.py --against ../before/src

Requests about NQ-SWAP pages, of one or two pages and of 16 to 96 new tokens, every second one with a memory, arrive
as a Poisson process and are streamed. The time to the first token counts from a request's arrival. With `--against`, an
engine of another checkout answers the same requests at the same times, in turns with this one, each in its own process;
ratios are medians of the ratios of neighbouring runs. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parents[2] / "shared" / "data" / "nqswap" / "nqswap-dev.jsonl.xz"
LENGTHS = (16, 24, 32, 48, 96)
LONGEST = 3000  # characters of a page


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """The requests as plain data, with the seconds between their arrivals in units of the mean."""
    import lzma

    rng = random.Random(seed)
    with lzma.open(PAGES, "rt", encoding="utf-8") as lines:
        pages = [item for line in lines if len((item := json.loads(line))["org_context"]) < LONGEST]
    items = rng.sample(pages, count * 2)
    return [
        {
            "question": items[2 * n]["question"] + "?",
            "documents": [item["org_context"] for item in items[2 * n : 2 * n + rng.randint(1, 2)]],
            "tokens": rng.choice(LENGTHS),
            "memorize": n % 2 == 1,
            "after": rng.expovariate(1.0),
        }
        for n in range(count)
    ]


def serve(wanted: list[dict[str, Any]], seconds: float, threads: int) -> dict[str, Any]:
    """Answer requests that arrive every `seconds` on average, and measure."""
    import torch

    from memograft import Engine, FastMem, Request, Sampling

    torch.set_num_threads(threads)
    first, ends, tokens, errors = {}, {}, {}, []
    with Engine.from_pretrained("smollm2", **json.loads(os.environ.get("ENGINE", "{}"))) as engine:
        engine.answer(Request("Hello?", documents=["A page."], memory=FastMem(), sampling=Sampling(2)))

        def ask(number: int, one: dict[str, Any], due: float) -> None:
            time.sleep(max(0.0, due - time.monotonic()))
            memory = FastMem() if one["memorize"] else None
            request = Request(
                one["question"], documents=one["documents"], memory=memory, sampling=Sampling(one["tokens"])
            )
            try:
                stream = engine.stream(request)
                for _ in stream:
                    first.setdefault(number, time.monotonic() - due)
                ends[number] = time.monotonic()
                tokens[number] = len(stream.answer.token_ids) if stream.answer is not None else 0
            except Exception as e:
                errors.append(f"{type(e).__name__}: {e}")

        begin = time.monotonic() + 0.1
        due, callers = begin, []
        for number, one in enumerate(wanted):
            due += one["after"] * seconds
            callers.append(threading.Thread(target=ask, args=(number, one, due)))
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    waits = sorted(first.values())
    return {
        "tokens_per_second": sum(tokens.values()) / (max(ends.values()) - begin),
        "requests_per_second": len(ends) / (max(ends.values()) - begin),
        "first_token_p50": statistics.median(waits),
        "first_token_p95": waits[min(len(waits) - 1, round(0.95 * (len(waits) - 1)))],
        "seconds": max(ends.values()) - begin,
        "tokens": sum(tokens.values()),
        "errors": errors,
    }


def child(source: Path | None, args: argparse.Namespace) -> dict[str, Any]:
    """Run this file in a process of its own, with the package from `source`."""
    env = dict(os.environ)
    if source is not None:
        env["PYTHONPATH"] = str(source.resolve())
    command = [sys.executable, __file__, "--child", "--count", str(args.count), "--seconds", str(args.seconds)]
    command += ["--threads", str(args.threads), "--seed", str(args.seed)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.5, help="mean time between two arrivals")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="the folder `src` of another checkout")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(serve(requests(args.count, args.seed), args.seconds, args.threads)))
        return
    import torch

    from memograft.evaluation.provenance import provenance

    torch.set_num_threads(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {"here": []} | ({"against": []} if args.against else {})
    for n in range(args.repeat):
        for name in list(runs)[:: 1 if n % 2 else -1]:
            runs[name].append(child(args.against if name == "against" else None, args))
            print(name, {k: round(v, 2) for k, v in runs[name][-1].items() if k != "errors"}, file=sys.stderr)
    keys = [key for key in runs["here"][0] if key != "errors"]
    medians = {name: {key: statistics.median(run[key] for run in of) for key in keys} for name, of in runs.items()}
    ratios = {}
    if args.against:
        for key in ("tokens_per_second", "first_token_p50", "first_token_p95"):
            each = [a[key] / b[key] for a, b in zip(runs["here"], runs["against"], strict=True)]
            ratios[key] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    for name, values in medians.items():
        print(f"{name:10}" + "".join(f"{key} {value:8.2f}   " for key, value in values.items()))
    for key, value in ratios.items():
        print(f"{key}: {value['median']:.2f} ({value['least']:.2f} to {value['most']:.2f}) of the other engine's")
    settings = {k: v for k, v in vars(args).items() if k not in ("against", "child")}
    of = {"model": "smollm2", "data": PAGES.name, "dtype": "bfloat16"}
    record = {"benchmark": "arrivals", **of, **settings, "medians": medians, "ratios": ratios, "runs": runs}
    print(json.dumps(record | provenance(torch.device("cpu"))))


if __name__ == "__main__":
    main()
