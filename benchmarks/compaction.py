"""What answers lose when a page is carried as some of its keys and values: SQuAD and NQ-SWAP, SmolLM2.

    python benchmarks/compaction.py --out runs/compaction  # the development set of SQuAD
    python benchmarks/compaction.py --data nqswap --out runs/compaction-nq
    python benchmarks/compaction.py --split tune --pages 20 --out runs/tune  # settings are chosen here

Every page is kept (all keys and values; also in 8 bits), compacted, dropped (as many keys in each head, those with the
highest attention of the same queries, without a fit), truncated (its first tokens), compressed into gist tokens
(--gist; also refined, --refine), or left out; FastMem is added to some. Compacted, dropped and truncated pages of one
ratio have as many bytes: all are in 8 bits. F1 and accuracy (the answer is contained) are those of greedy answers; KL
is that of the next tokens of the answer with the whole page. Intervals draw whole pages. Results are stored page by
page: an interrupted run goes on, and a later one may add pages, ratios and gists. Prints a table and, last, one JSON
line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memograft import Compacted, Document, Engine, FastMem, Gist, Kept, MemoryHandle, Request, Sampling
from memograft.evaluation.items import Item
from memograft.evaluation.metrics import interval
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers import read
from memograft.evaluation.scores import f1, holds
from memograft.memory.base import Model, Task
from memograft.memory.compact import keys
from memograft.memory.gist.folder import about
from memograft.model.backbone import Backbone, cache_name
from memograft.model.carried import Carried, CarriedLayer
from memograft.model.int8 import Int8
from memograft.model.key_bias import biased
from memograft.model.kv import Segment, pairs
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt, PromptBuilder

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = {
    "squad": (DATA / "squad" / "dev-v1.1.json.xz", "agrees"),
    "squad-train": (DATA / "squad" / "train-v1.1.json.xz", "agrees"),
    "nqswap": (DATA / "nqswap" / "nqswap-dev.jsonl.xz", "contradicts"),
}
RATIOS = (2, 4, 8, 10, 16, 32)
ASK = "Answer with a few words. "
FULL, NONE = "whole page", "no page"
SAMPLING = Sampling(max_new_tokens=24)
ROUNDED = Compacted(ratio=1.5)  # all keys, in 8 bits


@dataclass(frozen=True)
class Dropped(Compacted):
    """As many keys in each head: those with the highest mean attention. Values are only rounded."""

    kind: ClassVar[str] = "dropped"

    def compact(self, model: Model, prompt: Prompt, segment: Segment, task: Task) -> Carried:
        start, whole = min(start for start, _ in prompt.spans), segment.kv_cache.layers
        asked, layers = keys.asked_of(model.backbone, segment, start, keys.tail_of(model, prompt, ["?"])), []
        share = keys.share_of(whole, self.ratio, int8=True)
        for n, layer in enumerate(whole):
            kept = torch.ones(layer.keys.shape[1], segment.length, dtype=torch.bool)
            every = torch.arange(asked[n].queries.shape[2])
            for own, (scores, _) in zip(kept, keys.heads_of(layer, asked[n], every), strict=True):
                mean = torch.softmax(scores, -1)[:, start:].mean(0)
                own[start:] = False
                own[start + mean.topk(max(1, round(len(mean) * share))).indices] = True
            own_keys, own_values = Int8.of(layer.keys[0][kept]), Int8.of(layer.values[0][kept])
            layers.append(CarriedLayer(kept, own_keys, own_values, torch.zeros(len(own_keys))))
        return Carried(segment.ids, tuple(layers))


def asked_once() -> None:
    """Let all ratios of a page share the pass that shows the queries; `speed.py` measures the time to compact."""
    real, seen = keys.asked_of, dict[tuple[int, ...], Any]()

    def asked(backbone: Backbone, segment: Segment, *rest: Any) -> Any:
        if segment.ids not in seen:
            seen.clear()
            seen[segment.ids] = real(backbone, segment, *rest)
        return seen[segment.ids]

    keys.asked_of = asked


def ways(
    engine: Engine, documents: Sequence[Document], ratios: Sequence[int], gists: Sequence[Gist]
) -> dict[str, Callable[[], MemoryHandle | None]]:
    """Name -> how a page is carried."""

    def truncated(ratio: int) -> MemoryHandle:
        (page,) = documents
        tokens, parts = engine.encode(page.text), (engine.memorize(documents, way).nbytes for way in (ROUNDED, Kept()))
        most = len(tokens) / ratio / (next(parts) / next(parts))
        text = engine.tokenizer.decode(tokens[: max(1, round(most))])
        return engine.memorize([Document(text)], ROUNDED)

    found: dict[str, Callable[[], MemoryHandle | None]] = {
        FULL: lambda: engine.memorize(documents, Kept()),
        NONE: lambda: None,
        f"{FULL}, int8": lambda: engine.memorize(documents, ROUNDED),
        f"{FULL} + FastMem": lambda: engine.memorize(documents, Kept(FastMem())),
    }
    for ratio in ratios:
        found[f"compacted {ratio}x"] = lambda ratio=ratio: engine.memorize(documents, Compacted(ratio=ratio))
        found[f"dropped {ratio}x"] = lambda ratio=ratio: engine.memorize(documents, Dropped(ratio=ratio))
        found[f"truncated {ratio}x"] = lambda ratio=ratio: truncated(ratio)
        if ratio == 10:
            found[f"compacted {ratio}x, not rounded"] = lambda ratio=ratio: engine.memorize(
                documents, Compacted(ratio=ratio, int8=False)
            )
        if ratio in (4, 10):
            found[f"compacted {ratio}x + FastMem"] = lambda ratio=ratio: engine.memorize(
                documents, Compacted(FastMem(), ratio)
            )
    for gist in gists:
        name = f"gist {Path(gist.folder).name} {about(Path(gist.folder)).id[:8]}"
        name += f", {gist.refine} steps" if gist.refine else ""
        found[name] = lambda gist=gist: engine.memorize(documents, gist)
    return found


def predicted(engine: Engine, question: str, handle: MemoryHandle | None, said: Sequence[int]) -> Tensor:
    """(n, V) log-probabilities of the tokens of an answer, without an adapter."""

    def call(backbone: Backbone, prompts: PromptBuilder) -> Tensor:
        documents = handle.settings.shown(handle.documents) if handle is not None else ()
        prompt = prompts.build([{"role": "user", "content": question}], documents)
        segment = handle.segment_of(backbone, prompt) if handle is not None else None
        filled = prefill(backbone, [prompt.ids], 0, [segment])
        ids = torch.tensor([[prompt.ids[-1], *said[:-1]]])
        mask = torch.cat([filled.mask[:, :-1], torch.ones_like(ids)], 1)
        places = filled.positions[:, -1:] + torch.arange(ids.shape[1])
        with torch.no_grad(), biased(backbone, filled.kv_cache):
            out = backbone.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                use_cache=True,
                **{cache_name(backbone.model.forward): filled.kv_cache},
            )
        return torch.log_softmax(out.logits[0].float(), -1)

    return engine.with_model(call)


def measured(
    engine: Engine, items: Sequence[Item], ratios: Sequence[int], gists: Sequence[Gist], known: Set[str]
) -> list[dict[str, Any]]:
    """A row for each way that is not known and question of one page."""
    made = ways(engine, items[0].documents, ratios, gists)
    if made.keys() <= known:
        return []
    handles = {name: make() for name, make in made.items() if name == FULL or name not in known}
    asked = [(name, item, ASK + item.question) for name in handles for item in items]
    answers = engine.answer_batch([Request(q, memory=handles[name], sampling=SAMPLING) for name, _, q in asked])
    rows, base, said = [], {}, {}
    for (name, item, question), answer in zip(asked, answers, strict=True):
        kl, handle = None, handles[name]
        if name == FULL:
            said[item.id] = answer.token_ids or (0,)
            base[item.id] = predicted(engine, question, handle, said[item.id])
        elif "FastMem" not in name:
            own = predicted(engine, question, handle, said[item.id])
            kl = float((base[item.id].exp() * (base[item.id] - own)).sum(-1).mean())
        row = {"way": name, "id": item.id, "text": answer.text, "f1": f1(answer.text, item.answers), "kl": kl}
        row |= {"right": any(holds(answer.text, a) for a in item.answers), "ended": answer.finish_reason == "stop"}
        rows.append(row | {"bytes": size(handle) if handle is not None else 0})
    return [row for row in rows if row["way"] not in known]


def size(handle: MemoryHandle) -> int:
    """Bytes of what is kept of a page."""
    if isinstance(handle.settings, Gist) and handle.segment is not None:
        return sum(k.nbytes + v.nbytes for k, v in pairs(handle.segment.kv_cache))
    return handle.nbytes


def table(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The means of each way, with intervals over pages. Every way has rows of the same questions."""
    by_way: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault(row["way"], []).append(row)
    full, found = by_way[FULL], {}
    whole = statistics.mean(row["f1"] for row in full) or 1.0
    for name, own in by_way.items():
        pages = [row["page"] for row in own]
        lost = np.array([a["f1"] - b["f1"] for a, b in zip(own, full, strict=True)])
        mean = statistics.mean(row["f1"] for row in own)
        kls = [row["kl"] for row in own if row["kl"] is not None]
        found[name] = {
            "f1": mean,
            "of_whole": mean / whole,
            "of_whole_interval": [1 + bound / whole for bound in interval(lost, pages)],
            "accuracy": statistics.mean(row["right"] for row in own),
            "ended": statistics.mean(row["ended"] for row in own),
            "kl": statistics.mean(kls) if kls else None,
            "bytes": statistics.mean(row["bytes"] for row in own),
            "n": len(own),
        }
    return found


def first_tokens(
    engine: Engine, items: Sequence[Item], ratios: Sequence[int], gists: Sequence[Gist]
) -> dict[str, float]:
    """CPU time until the first token of an answer about one page, of each way, as a part of `generate`'s."""
    question, times = ASK + items[0].question, dict[str, list[float]]()
    made = ways(engine, items[0].documents, ratios, gists)
    handles = {name: make() for name, make in made.items() if "FastMem" not in name}
    ids = torch.tensor([engine.answer(Request(question, memory=handles[FULL], sampling=Sampling(1))).prompt_ids])
    parts: dict[str, Callable[[], object]] = {
        "generate": lambda: engine.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False
        )
    }
    for name, handle in handles.items():
        request = Request(question, memory=handle, sampling=Sampling(1))
        parts[name] = lambda request=request: engine.answer(request)
    for _ in range(6):
        for name, part in parts.items():
            began = time.process_time()
            part()
            times.setdefault(name, []).append(time.process_time() - began)
    whole = times.pop("generate")[1:]
    return {
        name: statistics.median(own / of for own, of in zip(each[1:], whole, strict=True))
        for name, each in times.items()
    }


def draw(found: dict[str, dict[str, Any]], path: Path, title: str) -> None:
    """F1 against the bytes of a page, and against the time to the first token."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = {"compacted": ("#D55E00", "o"), "dropped": ("#6B6B6B", "D"), "truncated": ("#0072B2", "s")}
    kinds |= {"gist": ("#009E73", "^")}
    figure, sides = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axes, key, scale in zip(sides, ("bytes", "first_token"), (1024, 1), strict=True):
        for kind, (colour, marker) in kinds.items():
            own = [row for name, row in found.items() if name.startswith(kind) and not {",", "+"} & set(name)]
            own = sorted((row for row in own if row.get(key) is not None), key=lambda row: row["bytes"])
            x, y = [row[key] / scale for row in own], [row["f1"] for row in own]
            axes.plot(x, y, color=colour, marker=marker, linewidth=1, label=kind)
        axes.axhline(found[FULL]["f1"], color="black", linewidth=1, label="whole page, kept")
        axes.axhline(found[NONE]["f1"], color="black", linewidth=1, linestyle=":", label="no page")
    sides[0].set(xscale="log", xlabel="KiB a page, with the 50 tokens before it", ylabel="F1", ylim=(0, None))
    sides[0].set_xticks([500, 750, 1000, 1500, 2000], ["500", "750", "1,000", "1,500", "2,000"], minor=False)
    sides[0].minorticks_off()
    sides[1].set(xlabel="time to the first token / generate with the page", xlim=(0, None))
    sides[0].legend(frameon=False, fontsize=7, loc="lower right", ncols=3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SETS), default="squad")
    parser.add_argument("--split", choices=("test", "tune"), default="test")
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--questions", type=int, default=3, help="of each page, at most")
    parser.add_argument("--ratios", type=int, nargs="+", default=RATIOS)
    parser.add_argument("--gist", nargs="*", default=[], help="folders of trained gists")
    parser.add_argument("--refine", type=int, nargs="*", default=[], help="each gist after so many steps too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="a .png file")
    parser.add_argument(
        "--beside", type=Path, help="a record of this benchmark whose further ways are in the picture too"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    asked_once()
    path, context = SETS[args.data]
    reading = read(path, contexts=[context], split=args.split)
    pages: dict[str, list[Item]] = {}
    for item in reading.items:
        own = pages.setdefault(item.documents[0].text, [])
        own += [item] if len(own) < args.questions else []
    pages = dict(list(pages.items())[: args.pages])
    gists = [Gist(folder, refine=steps) for folder in args.gist for steps in (0, *args.refine)]
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known: dict[int, set[str]] = {}
    for row in rows:
        known.setdefault(row["page"], set()).add(row["way"])
    with Engine.from_pretrained("smollm2", max_batch=64) as engine, file.open("a") as sink:
        for number, items in enumerate(tqdm(pages.values(), desc="pages")):
            own = measured(engine, items, args.ratios, gists, known.get(number, set()))
            new = [row | {"page": number} for row in own]
            sink.write("".join(json.dumps(row) + "\n" for row in new))
            sink.flush()
            rows += new
        wanted = ways(engine, next(iter(pages.values()))[0].documents, args.ratios, gists)
        found = table([row for row in rows if row["page"] < len(pages) and row["way"] in wanted])
        for name, value in first_tokens(engine, next(iter(pages.values())), args.ratios, gists).items():
            found[name]["first_token"] = value
    if args.picture:
        others = json.loads(args.beside.read_text())["ways"] if args.beside else {}
        others = {name: row | {"first_token": None} for name, row in others.items()}  # of another machine
        draw({**others, **found}, args.picture, f"SmolLM2-135M-Instruct, {args.data}, {len(pages)} pages")
    print(f"{'':28}{'F1':>7}{'of whole':>10}{'interval':>16}{'right':>7}{'KL':>7}{'KiB':>7}")
    for name, row in found.items():
        low, high = row["of_whole_interval"]
        kl = "" if row["kl"] is None else f"{row['kl']:.3f}"
        print(
            f"{name:28}{row['f1']:7.3f}{row['of_whole']:10.3f}   [{low:.3f}, {high:.3f}]{row['accuracy']:7.3f}{kl:>7}"
            f"{row['bytes'] / 1024:7.0f}"
        )
    record = {"benchmark": "compaction", "model": "smollm2", "data": path.name, "set": context, "split": args.split}
    record |= {"pages": len(pages), "skipped": dict(reading.skipped), "dtype": str(engine.model.dtype)}
    record |= {"gists": {folder: about(Path(folder)).training for folder in args.gist}}
    print(json.dumps(record | {"ways": found} | provenance(torch.device("cpu"))))


if __name__ == "__main__":
    main()
