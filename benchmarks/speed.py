"""What memorizing costs: its parts beside the prefill, and whole answers beside Hugging Face's `generate`.

    python benchmarks/speed.py nqswap-dev.jsonl.xz            # SmolLM2-135M-Instruct, NQ-SWAP pages
    python benchmarks/speed.py --shape qwen-0.5b --tokens 512 # Qwen2.5-0.5B's shape, random weights, one document

Parts: judging relevance, and memorizing with its exact losses, as the engine calls them, for a batch of rows and for
single rows. Whole answers: greedy, always of the same number of tokens. "ordinary" is FastMem written with Hugging Face
alone: ten forward and backward passes through the whole model with only the last FFN trainable, then `generate`.
Everything takes turns within a repetition; a ratio is the median over the repetitions, with the least and the largest.
CPU time, because a shared machine's clock also counts its neighbours. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memograft import Document, Engine, FastMem, Request, Sampling
from memograft.evaluation.provenance import provenance
from memograft.evaluation.readers.reading import read
from memograft.memory.base import Task, Wanted
from memograft.memory.fastmem.relevance import LEAD, relevances
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 32_000},
    "qwen-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936},
}
ORDINARY_STEPS = 10
Question = tuple[str, tuple[Document, ...]]


def build(shape: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = SHAPES[shape]["hidden_size"] // 64
    config = LlamaConfig(
        **SHAPES[shape],
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def words(count: int) -> list[str]:
    return [f"w{n % 97}" for n in range(count)]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the document has as many tokens as the benchmark states."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words(97)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


class Contest:
    """One engine and its questions; `times` runs everything once, in turn."""

    def __init__(self, engine: Engine, memory: FastMem, new_tokens: int) -> None:
        self._engine, self._new = engine, new_tokens
        self._memory = memory.resolved()
        self._model = engine._model
        engine.model.generation_config.min_new_tokens = new_tokens  # all generate the same number of tokens

    def times(self, questions: Sequence[Question]) -> Iterator[tuple[str, float]]:
        """CPU seconds of each part and of each whole answer."""
        prompts = [self._prompt(q) for q in questions]
        yield from self._parts(prompts, f"{len(prompts)} rows")
        yield from self._parts(prompts[:1], "1 row")
        (question, documents), ids = questions[0], torch.tensor([prompts[0].ids])
        yield "generate", spent(lambda: self._generate(ids))
        for name, memory in (("plain", None), ("memorized", self._memory)):
            request = Request(question, documents=documents, memory=memory, sampling=Sampling(self._new))
            yield f"answer, {name}", spent(lambda r=request: self._engine.answer(r))
        context = torch.tensor(prompts[0].context)
        yield "ordinary, memorizing", self._ordinary(ids, context)

    def _prompt(self, question: Question) -> Prompt:
        return self._model.prompts.build([{"role": "user", "content": question[0]}], question[1])

    def _parts(self, prompts: Sequence[Prompt], name: str) -> Iterator[tuple[str, float]]:
        backbone, rows = self._model.backbone, range(len(prompts))
        began = time.process_time()
        filled = prefill(backbone, [p.ids for p in prompts], self._model.pad_id)
        yield f"prefill, {name}", time.process_time() - began
        if self._memory.relevance is not None:
            lead = self._model.prompts.continued(LEAD)
            yield f"relevance, {name}", spent(lambda: relevances(backbone, filled, rows, prompts, lead))
        wanted = [Wanted(self._memory, prompt, row) for row, prompt in enumerate(prompts)]
        yield f"all of memorizing, {name}", spent(lambda: FastMem.prepare(self._model, wanted, filled, Task()))

    def _generate(self, ids: torch.Tensor) -> None:
        mask = torch.ones_like(ids)
        self._engine.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=self._new, do_sample=False)

    def _ordinary(self, ids: torch.Tensor, context: torch.Tensor) -> float:
        """CPU seconds of the paper's loop through the whole model; its weights are put back afterwards."""
        model: Any = self._engine.model
        ffn = model.model.layers[-1].mlp
        kept = copy.deepcopy(ffn.state_dict())
        trained = list(ffn.parameters())
        for parameter in trained:
            parameter.requires_grad_(True)
        optimiser, base = torch.optim.AdamW(trained, lr=1e-5), None
        began = time.process_time()
        for _ in range(ORDINARY_STEPS):
            logp = model(input_ids=ids).logits[:, context - 1].float().log_softmax(-1)
            base = logp.detach() if base is None else base
            kl = torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1).mean()
            loss = torch.nn.functional.nll_loss(logp[0], ids[0, context]) + 0.1 * kl
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
        seconds = time.process_time() - began
        ffn.load_state_dict(kept)
        for parameter in trained:
            parameter.requires_grad_(False)
        return seconds


def spent(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


RATIOS = (
    ("all of memorizing, {}", "prefill, {}"),
    ("relevance, {}", "prefill, {}"),
)


def ratios(seconds: dict[str, list[float]], rows: int) -> dict[str, dict[str, float]]:
    """Median, least and largest ratio of the times that belong together."""
    pairs = [(a.format(n), b.format(n)) for n in (f"{rows} rows", "1 row") for a, b in RATIOS]
    pairs += [("answer, plain", "generate"), ("answer, memorized", "generate")]
    pairs += [("ordinary, memorizing", "all of memorizing, 1 row")]
    found = {}
    for one, other in pairs:
        if one in seconds:
            each = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
            median, least, most = statistics.median(each), min(each), max(each)
            found[f"{one} / {other}"] = {"median": round(median, 3), "min": round(least, 3), "max": round(most, 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="NQ-SWAP: nqswap-dev.jsonl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--context", default="contradicts", help='"one of five" for five pages a question')
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of a model; needs no data")
    parser.add_argument("--tokens", type=int, default=512, help="of the document, with --shape")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="with --shape")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.shape is None:
        if args.data is None:
            parser.error("give a file of questions, or --shape")
        n = args.rows * (args.repeat + 1)
        items = read(args.data, contexts=[args.context], split="test", n=n).items
        questions: list[Question] = [(item.question, item.documents) for item in items]
        engine, memory = Engine.from_pretrained(args.model), FastMem()
    else:
        document = Document(" ".join(words(args.tokens)))
        questions = [("w1 w2", (document,))] * args.rows * (args.repeat + 1)
        engine = Engine(build(args.shape).to(getattr(torch, args.dtype)), word_tokenizer())
        memory = FastMem(relevance=None, target_kl=None, max_kl=1e9)  # random weights: all steps, never rolled back
    seconds: dict[str, list[float]] = {}
    with engine:
        contest = Contest(engine, memory, args.new_tokens)
        for turn, start in enumerate(tqdm(range(0, len(questions), args.rows), desc="repetitions")):
            for name, time_ in contest.times(questions[start : start + args.rows]):
                if turn:  # the first warms up
                    seconds.setdefault(name, []).append(time_)
        dtype = str(engine.model.dtype).removeprefix("torch.")
    found = ratios(seconds, args.rows)
    print("| ratio | median | least | largest |\n|---|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['median']:.2f} | {row['min']:.2f} | {row['max']:.2f} |")
    record = {
        "benchmark": "speed",
        "model": args.model if args.shape is None else f"llama, random weights, {args.shape}: {SHAPES[args.shape]}",
        "data": f"{Path(args.data).name}, {args.context}" if args.shape is None else f"{args.tokens} tokens",
        "rows": args.rows,
        "new_tokens": args.new_tokens,
        "memory": memory.resolved().to_json(),
        "ordinary_steps": ORDINARY_STEPS,
        "repetitions": args.repeat,
        "results": found,
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "dtype": dtype,
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
