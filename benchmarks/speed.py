"""What memorizing costs, in one run: plain Hugging Face code, this engine, and FastMem done the ordinary way.

    python benchmarks/speed.py                    # 12 layers, D 512, V 32,000, random weights
    python benchmarks/speed.py --shape qwen-0.5b  # Qwen2.5-0.5B's shape, random weights

"ordinary" is FastMem as one would write it with Hugging Face alone: ten forward and backward passes through the whole
model with only the last FFN's weights trainable, then `generate`. Random weights: only the time means something. Every
repetition runs all contestants in turn; the ratios are medians. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import memograft
from memograft import Engine, FastMem, Request, Sampling
from memograft.evaluation.provenance import provenance

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 32_000},
    "qwen-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936},
}
STEPS, NEW_TOKENS = 10, 32


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
    """One token a word: the length of a prompt is what the benchmark says it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words(97)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def hugging_face(model: Any, ids: torch.Tensor) -> None:
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
    )


def ordinary_fastmem(model: Any, ids: torch.Tensor) -> None:
    """Equation of the paper through the whole model; the model is put back afterwards."""
    ffn = model.model.layers[-1].mlp
    kept = copy.deepcopy(ffn.state_dict())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = list(ffn.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=1e-5)
    base = None
    for _ in range(STEPS):
        logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        base = logp.detach() if base is None else base
        kl = torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1).mean()
        loss = torch.nn.functional.nll_loss(logp.flatten(0, 1), ids[:, 1:].flatten()) + 0.1 * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    hugging_face(model, ids)
    ffn.load_state_dict(kept)


def contestants(model: Any, tokens: int) -> dict[str, Callable[[], Any]]:
    engine = Engine(model, word_tokenizer())
    document = " ".join(words(tokens))
    sampling = Sampling(max_new_tokens=NEW_TOKENS)
    prompt = engine._prompts.build([{"role": "user", "content": "w1 w2"}], [memograft.Document(document)])
    ids = torch.tensor([prompt.ids])
    model.generation_config.min_new_tokens = NEW_TOKENS  # all generate the same number of tokens

    def ask(memory: FastMem | None, rows: int = 1) -> Callable[[], Any]:
        request = Request("w1 w2", documents=[document], memory=memory, sampling=sampling)
        return lambda: engine.answer_batch([request] * rows)

    handle = engine.memorize([document], FastMem(target_kl=None, max_kl=1e9, relevance=-1e9))
    reuse = Request("w1 w2", memory=handle, sampling=sampling)
    return {
        "Hugging Face generate": lambda: hugging_face(model, ids),
        "engine, plain": ask(None),
        "engine, FastMem (default)": ask(FastMem(target_kl=None, max_kl=1e9, relevance=-1e9)),
        "engine, FastMem, full head": ask(FastMem(shortlist=None, target_kl=None, max_kl=1e9, relevance=-1e9)),
        "engine, paper's recipe": ask(FastMem.paper(target_kl=None, max_kl=1e9)),
        "engine, a kept memory": lambda: engine.answer(reuse),
        "ordinary FastMem": lambda: ordinary_fastmem(model, ids),
        "engine, FastMem, 8 rows": ask(FastMem(target_kl=None, max_kl=1e9, relevance=-1e9), 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--tokens", type=int, default=256, help="of the document")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runners = contestants(build(args.shape), args.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in tqdm(range(args.repeat + 1), desc="repetitions"):
        for name, run in runners.items():
            began = time.perf_counter()
            run()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    first = next(iter(runners))
    rows = {}
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds[first], strict=True)]
        rows[name] = {"ratio": round(statistics.median(ratios), 3), "seconds": round(statistics.median(times), 3)}
    print("| contestant | time, Hugging Face generate = 1 |\n|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ratio']:.2f} |")
    record = {
        "benchmark": "speed",
        "model": f"llama, random weights, {args.shape}: {SHAPES[args.shape]}",
        "document_tokens": args.tokens,
        "new_tokens": NEW_TOKENS,
        "steps": STEPS,
        "results": rows,
        "repetitions": args.repeat,
        "dtype": "float32",
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
