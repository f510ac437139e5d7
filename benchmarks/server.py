"""What HTTP costs per token: streams over loopback against `Engine.astream` in the same process, in turns.

    python benchmarks/server.py --model smollm2 --rounds 5

The client is a process of its own. Prints the median time per token of both ways and their ratio, for 1 and 16 streams,
and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from memograft import Engine, Request, Sampling
from memograft.evaluation.provenance import provenance
from memograft.server import InBackground, ServerSettings, create_app

QUESTIONS = [f"Tell me a story about a fox and {n} hens." for n in range(16)]


def ending(engine: Engine) -> dict[int, float]:
    """A bias against the tokens that end an answer, so that all answers are equally long."""
    ids = engine.model.generation_config.eos_token_id
    return dict.fromkeys(ids if isinstance(ids, list) else [ids], -100.0)


async def direct(engine: Engine, streams: int, tokens: int) -> float:
    """Seconds for all streams."""

    async def one(question: str) -> None:
        request = Request(question, sampling=Sampling(tokens, logit_bias=ending(engine)))
        async for _ in engine.astream(request):
            pass

    begun = time.perf_counter()
    await asyncio.gather(*map(one, QUESTIONS[:streams]))
    return time.perf_counter() - begun


async def over_http(port: int, bias: dict[str, float], streams: int, tokens: int) -> float:
    """The same, by a client that reads and does not parse: what a client costs depends on the client."""

    async def one(question: str) -> None:
        messages = [{"role": "user", "content": question}]
        how = {"max_tokens": tokens, "logit_bias": bias, "stream": True}
        body = json.dumps({"model": "m", "messages": messages, **how}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
        got = await reader.read()
        writer.close()
        assert got.count(b"data: ") > tokens // 2, got
        assert b"data: [DONE]" in got, got

    begun = time.perf_counter()
    await asyncio.gather(*map(one, QUESTIONS[:streams]))
    return time.perf_counter() - begun


def client() -> None:
    """Read tasks from stdin, and write seconds to stdout."""
    for line in sys.stdin:
        print(asyncio.run(over_http(**json.loads(line))), flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    command = [sys.executable, __file__, "--client"]
    with (
        Engine.from_pretrained(asked.model) as engine,
        InBackground(create_app(engine, ServerSettings(model="m"))) as server,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        bias = {str(id): value for id, value in ending(engine).items()}
        found: dict[int, dict[str, float]] = {}
        for streams in (1, 16):
            task: dict[str, Any] = {"port": server.port, "bias": bias, "streams": streams, "tokens": asked.tokens}
            both: list[tuple[float, float]] = []
            for _ in range(asked.rounds + 1):
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                http = float(process.stdout.readline())
                both.append((asyncio.run(direct(engine, streams, asked.tokens)), http))
            own, http = (1000 * statistics.median(pair[n] for pair in both[1:]) / asked.tokens for n in (0, 1))
            ratios = [http / own for own, http in both[1:]]
            ratio = statistics.median(ratios)
            found[streams] = {
                "ratio": round(ratio, 3),
                "least": round(min(ratios), 3),
                "largest": round(max(ratios), 3),
            }
            found[streams] |= {"milliseconds": round(own, 2), "milliseconds_http": round(http, 2)}
            print(f"{asked.model}, {streams} streams: {own:.2f} ms per token, over HTTP {http:.2f}; ratio {ratio:.3f}")
        process.stdin.close()
    about = {"benchmark": "server", "model": asked.model, "tokens": asked.tokens, "rounds": asked.rounds}
    print(json.dumps({**about, "results": found, **provenance(engine.model.device)}))


if __name__ == "__main__":
    client() if "--client" in sys.argv else main()
