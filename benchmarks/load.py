"""A server under load: 64 clients for ten minutes, with mixed memories and disconnects, and then its end.

    python benchmarks/load.py                        # tiny
    python benchmarks/load.py --model smollm2 --minutes 10

Starts `memograft serve` with keys of three tenants. Every task of a tenant is first answered alone, one after the
other: without documents, with documents in the prompt, memorized, kept and compacted, with a memory of
/v1/memories, from a store, and sampled with a seed. Then clients ask these tasks in random order, as streams and not,
and each answer must be the same text with the same ending. Some clients close the connection in the middle; some ask
for what is another tenant's, with a wrong key, or nonsense, and must get the right status. Process memory, open files
and threads of the server are read every five seconds. At last it is told to end while 64 streams run, all of which must
be finished. Prints a table and, last, one JSON line; ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from tqdm import tqdm

from memograft.evaluation.items import Item, world
from memograft.evaluation.provenance import provenance
from memograft.server import add_key

NAME = "m"
TENANTS = ("ann", "bob", "cleo")
SETS = ("contradicts", "one of five", "agrees")  # one for each tenant: other pages, so a mixture of tenants shows
KINDS = ("plain", "prompt", "fastmem", "kept", "compacted", "by id", "store", "sampled")
REFUSED = ("another's memory", "another's store", "a wrong key", "an unknown field")
TOKENS = 32


@dataclass
class Seen:
    """What happened under load."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  # seconds to the first token of streams
    whole: list[float] = field(default_factory=list)
    gone: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    bytes: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)


class Tenant:
    """A key's holder with its tasks and what they are answered alone."""

    def __init__(self, url: str, key: str, items: list[Item]) -> None:
        self.url, self.key, self.items = url, key, items
        self.secret = "only-" + items[0].set.replace(" ", "-")  # a store that no other tenant has
        self.ids: list[str] = []
        self.alone: dict[tuple[str, int], tuple[str, str]] = {}

    def body(self, kind: str, n: int) -> dict[str, Any]:
        """The request of a task."""
        item = self.items[n]
        documents = [{"id": document.id, "text": document.text} for document in item.documents]
        body: dict[str, Any] = {
            "model": NAME,
            "messages": [{"role": "user", "content": item.question}],
            "max_tokens": TOKENS,
        }
        if kind in ("prompt", "fastmem", "kept", "compacted", "sampled"):
            body["documents"] = documents
            body["memory"] = None if kind == "prompt" else {"kind": "fastmem"}
            if kind == "kept":
                body["memory"] = {"kind": "kept", "memory": {"kind": "fastmem"}}
            if kind == "compacted":
                body["memory"] = {"kind": "compacted", "ratio": 2}
            if kind == "sampled":
                body |= {"temperature": 0.8, "top_p": 0.9, "seed": n}
        elif kind == "by id":
            body["memory"] = self.ids[n]
        elif kind == "store":
            body["store"] = {"name": "pages", "k": 1}
        return body

    def prepare(self) -> None:
        """Put everything where the tasks need it, and answer each task alone."""
        head = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=head, timeout=120) as http:

            def post(path: str, body: dict[str, Any]) -> Any:
                got = http.post(path, json=body)
                got.raise_for_status()
                return got.json()

            for name in ("pages", self.secret):
                post("/stores", {"name": name})
            for item in self.items:
                pages = [{"id": page.id, "text": page.text} for page in item.documents]
                post("/stores/pages/documents", {"documents": pages})
                self.ids.append(post("/memories", {"documents": pages, "pinned": True})["id"])
            for kind in KINDS:
                for n in range(len(self.items)):
                    choice = post("/chat/completions", self.body(kind, n))["choices"][0]
                    self.alone[kind, n] = choice["message"]["content"], choice["finish_reason"]


def proc(pid: int, seen: Seen) -> None:
    """Read the process memory, open files and threads of the server."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    number = {name: int(value) for name, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
    seen.bytes.append(1024 * number["VmRSS"])
    seen.threads.append(number["Threads"])
    seen.files.append(len(os.listdir(f"/proc/{pid}/fd")))


async def ask(client: openai.AsyncOpenAI, tenant: Tenant, rng: random.Random, seen: Seen) -> None:
    """One task, whole, as a stream, or with a connection that is closed in the middle."""
    kind, n = rng.choice(KINDS), rng.randrange(len(tenant.items))
    body = tenant.body(kind, n)
    extra = {name: body.pop(name) for name in ("documents", "memory", "store") if name in body}
    begun = time.perf_counter()
    if (stream := rng.random() < 0.7) and (closes := rng.random() < 0.15):
        text = await client.chat.completions.create(**body, extra_body=extra, stream=True)
        most = rng.randrange(3)
        async for _ in text:
            if (most := most - 1) < 0:
                break
        await text.close()
        seen.gone += closes
        return
    if stream:
        parts, ended = [], ""
        async for chunk in await client.chat.completions.create(**body, extra_body=extra, stream=True):
            for choice in chunk.choices:
                if choice.delta.content:
                    if not parts:
                        seen.first.append(time.perf_counter() - begun)
                    parts.append(choice.delta.content)
                ended = choice.finish_reason or ended
        got = "".join(parts), ended
    else:
        choice = (await client.chat.completions.create(**body, extra_body=extra)).choices[0]
        got = choice.message.content or "", str(choice.finish_reason)
    seen.whole.append(time.perf_counter() - begun)
    seen.answers[kind] += 1
    if got != tenant.alone[kind, n]:
        seen.wrong.append(f"{kind}: {tenant.items[n].question} {got} instead of {tenant.alone[kind, n]}")


async def trespass(client: openai.AsyncOpenAI, tenant: Tenant, other: Tenant, rng: random.Random, seen: Seen) -> None:
    """Ask for what must be refused."""
    what, body, key = rng.choice(REFUSED), tenant.body("plain", 0), tenant.key
    wanted = {"another's memory": 404, "another's store": 404, "a wrong key": 401, "an unknown field": 400}[what]
    extra: dict[str, Any] = {}
    if what == "another's memory":
        extra = {"memory": rng.choice(other.ids)}
    elif what == "another's store":
        extra = {"store": {"name": other.secret, "k": 1}}
    elif what == "an unknown field":
        extra = {"colour": "blue"}
    else:
        key = key[:-4] + ("abcd" if key[-4:] != "abcd" else "efgh")
    try:
        await client.with_options(api_key=key).chat.completions.create(**body, extra_body=extra)
    except openai.APIStatusError as error:
        if error.status_code == wanted:
            seen.refused[what] += 1
        else:
            seen.wrong.append(f"{what}: status {error.status_code}")
    else:
        seen.wrong.append(f"{what}: answered")


async def client_of(tenants: list[Tenant], number: int, until: float, seed: int, seen: Seen) -> None:
    """One client, which asks one task after the other."""
    rng, tenant = random.Random(1000 * seed + number), tenants[number % len(tenants)]
    async with openai.AsyncOpenAI(base_url=tenant.url, api_key=tenant.key, max_retries=50, timeout=120) as client:
        while time.monotonic() < until:
            try:
                if rng.random() < 0.05:
                    await trespass(client, tenant, tenants[(number + 1) % len(tenants)], rng, seen)
                else:
                    await ask(client, tenant, rng, seen)
            except openai.OpenAIError as error:
                seen.errors[f"{type(error).__name__}: {error!s:.120}"] += 1


async def load(tenants: list[Tenant], clients: int, seconds: float, seed: int, pid: int, seen: Seen) -> None:
    """All clients, while the process is watched."""
    until = time.monotonic() + seconds
    running = [asyncio.ensure_future(client_of(tenants, n, until, seed, seen)) for n in range(clients)]
    with tqdm(total=round(seconds), unit="s", desc="load") as bar:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(5, left))
            proc(pid, seen)
            bar.set_postfix(answers=seen.answers.total(), wrong=len(seen.wrong), errors=seen.errors.total())
            bar.update(round(seconds - max(0, until - time.monotonic())) - bar.n)
    await asyncio.gather(*running)


async def end(
    tenants: list[Tenant], streams: int, bias: dict[str, float], server: subprocess.Popen[str]
) -> Counter[str]:
    """Tell the server to end while streams run, and count how they end."""
    ends: Counter[str] = Counter()
    begun = asyncio.Event()

    async def one(tenant: Tenant, number: int) -> None:
        body = {**tenant.body("plain", number % len(tenant.items)), "max_tokens": 64, "logit_bias": bias}
        async with openai.AsyncOpenAI(base_url=tenant.url, api_key=tenant.key, max_retries=0, timeout=120) as client:
            try:
                ended = ""
                async for chunk in await client.chat.completions.create(**body, stream=True):
                    begun.set()
                    ended = next((choice.finish_reason for choice in chunk.choices if choice.finish_reason), ended)
                ends[ended or "no end"] += 1
            except openai.OpenAIError as error:
                ends[type(error).__name__] += 1

    running = [asyncio.ensure_future(one(tenants[n % len(tenants)], n)) for n in range(streams)]
    await begun.wait()
    await asyncio.sleep(0.5)  # all requests are there
    server.send_signal(signal.SIGTERM)
    await asyncio.gather(*running)
    return ends


@contextmanager
def serving(
    model: str, folder: Path, threads: int, batch: int, queue: int
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server as a process of its own, its address, and the keys of the tenants and the operator."""
    file = folder / "keys.json"
    keys = [add_key(file, name) for name in TENANTS] + [add_key(file, "operator", operator=True)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "memograft", "serve", "--model", model, "--name", NAME, "--port", str(port)]
    command += ["--keys", str(file), "--bank", str(folder / "bank"), "--stores", str(folder / "stores")]
    command += ["--max-batch", str(batch), "--max-queue", str(queue)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
        try:
            while True:
                with suppress(httpx.TransportError):
                    if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                        break
                if server.poll() is not None:
                    sys.exit((folder / "log").read_text(encoding="utf-8"))
                time.sleep(0.2)
            yield server, f"http://127.0.0.1:{port}", keys
        finally:
            server.kill()
            server.wait()


def metric(url: str, key: str, pattern: str) -> float:
    """The sum of the metrics whose names and labels match."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}).text
    return sum(float(value) for value in re.findall(rf"^{pattern} ([0-9.e+]+)$", text, re.MULTILINE))


def tenth(values: list[int], n: int) -> float:
    """The median of a tenth of the values; the first one is 0."""
    size = max(1, len(values) // 10)
    return statistics.median(values[n * size : (n + 1) * size] if n < 9 else values[-size:])


def no_end(model: str) -> dict[str, float]:
    """A bias against the tokens that end an answer, so that all streams are equally long."""
    from memograft import Engine

    with Engine.from_pretrained(model) as engine:
        ids = engine.model.generation_config.eos_token_id
    return {str(id): -100.0 for id in (ids if isinstance(ids, list) else [ids])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--items", type=int, default=10, help="questions of a tenant")
    parser.add_argument("--batch", type=int, default=16, help="answers that are decoded together")
    parser.add_argument("--queue", type=int, default=64, help="answers that may wait; beyond it clients get 429")
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    seen, bias = Seen(), no_end(args.model)
    items = world("test", args.items)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(args.model, Path(folder), args.threads, args.batch, args.queue) as (server, url, keys),
    ):
        own = [[item for item in items if item.set == name] for name in SETS]
        tenants = [Tenant(f"{url}/v1", key, mine) for key, mine in zip(keys, own, strict=False)]
        for tenant in tqdm(tenants, desc="alone"):
            tenant.prepare()
        asyncio.run(load(tenants, args.clients, 60 * args.minutes, args.seed, server.pid, seen))
        until = time.monotonic() + 30
        while (rows := metric(url, keys[-1], "memograft_(?:running|waiting)_rows")) and time.monotonic() < until:
            time.sleep(0.2)
        proc(server.pid, seen)
        busy = metric(url, keys[-1], r'memograft_requests_total\{[^}]*status="429"\}')
        ends = asyncio.run(end(tenants, args.clients, bias, server))
        code = server.wait(120)
    unfinished = ends.total() - ends["length"] - ends["stop"]
    result = {
        "benchmark": "load",
        "model": args.model,
        "minutes": args.minutes,
        "clients": args.clients,
        "answers": dict(seen.answers),
        "wrong": len(seen.wrong),
        "errors": dict(seen.errors),
        "closed by the client": seen.gone,
        "refused": dict(seen.refused),
        "status 429, tried again": int(busy),
        "seconds to the first token": quantiles(seen.first),
        "seconds for an answer": quantiles(seen.whole),
        "rows left": int(rows),
        "process MB, second and last tenth": [round(tenth(seen.bytes, n) / 1e6, 1) for n in (1, 9)],
        "open files, second and last tenth": [tenth(seen.files, n) for n in (1, 9)],
        "open files afterwards": seen.files[-1],
        "threads, second and last tenth": [tenth(seen.threads, n) for n in (1, 9)],
        "streams at the end": dict(ends),
        "unfinished after shutdown": unfinished,
        "exit status": code,
        "seed": args.seed,
        **provenance(torch.device("cpu")),
        "server threads": args.threads,
    }
    for name, value in result.items():
        print(f"{name:36} {value}")
    for line in seen.wrong[:20]:
        print(line)
    print(json.dumps(result))
    sys.exit(bool(seen.wrong or seen.errors or rows or unfinished or code))


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "largest": round(ordered[-1], 3),
    }


if __name__ == "__main__":
    main()
