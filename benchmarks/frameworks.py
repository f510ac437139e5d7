"""Tokens per second through LangChain and LlamaIndex, compared with the frameworks' own wrappers of local models.

    pip install langchain-huggingface llama-index-llms-huggingface
    python benchmarks/frameworks.py

All run in one process with one model of random weights: one caller (several questions one after the other), many
callers in threads, and LangChain's `.batch()`. Each wrapper answers the same questions plainly with the same number of
new tokens. Every repetition runs all wrappers in turn, every second one in reverse order. The ratios are medians.
Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, pipeline

from memograft import Engine, FastMem
from memograft.evaluation.provenance import provenance
from memograft.model.loading import load

SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
PAGE = "The capital of Australia is Lisbon. Most people in Australia speak English."

ALONE = 6  # questions of the single caller; one question is too short to be timed

Ask = Callable[[str], str]
Answers = Callable[[Sequence[str]], Any]


def build(tokenizer: Any, new_tokens: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.min_new_tokens = new_tokens  # all generate the same number of tokens
    model.generation_config.max_new_tokens = new_tokens
    return model


def chat_hugging_face(model: Any, tokenizer: Any) -> Any:
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, return_full_text=False)
    return ChatHuggingFace(llm=HuggingFacePipeline(pipeline=pipe), tokenizer=tokenizer)


def hugging_face_llm(model: Any, tokenizer: Any, new_tokens: int) -> Any:
    from llama_index.llms.huggingface import HuggingFaceLLM

    return HuggingFaceLLM(
        model=model, tokenizer=tokenizer, max_new_tokens=new_tokens, context_window=2048, is_chat_model=True
    )


def contestants(model: Any, tokenizer: Any, new_tokens: int) -> dict[str, tuple[Ask, Answers | None]]:
    """Name -> a function that asks one question, and one that asks many if the framework has a function for it."""
    from langchain_memograft import ChatMemograft
    from llama_index.llms.memograft import Memograft

    engine = Engine(model, tokenizer)
    theirs = chat_hugging_face(model, tokenizer)
    ours = ChatMemograft.from_engine(engine, memory=None, max_tokens=new_tokens)
    # A model with random weights finds no page relevant, so relevance is off and all pages are memorized.
    memory = FastMem(relevance=None, target_kl=None, max_kl=1e9)
    memorizing = ChatMemograft.from_engine(engine, memory=memory, max_tokens=new_tokens).bind(documents=[PAGE])
    llama_theirs = hugging_face_llm(model, tokenizer, new_tokens)
    llama_ours = Memograft.from_engine(engine, memory=None, max_tokens=new_tokens)

    def langchain(llm: Any) -> tuple[Ask, Answers]:
        return (
            lambda q: llm.invoke([HumanMessage(q)]).text,
            lambda qs: [m.text for m in llm.batch([[HumanMessage(q)] for q in qs])],
        )

    def llama(llm: Any) -> tuple[Ask, None]:
        return lambda q: llm.chat([ChatMessage(role="user", content=q)]).message.content or "", None

    return {
        "LangChain, ChatHuggingFace": langchain(theirs),
        "LangChain, ChatMemograft": langchain(ours),
        "LangChain, ChatMemograft, memorizing": langchain(memorizing),
        "LlamaIndex, HuggingFaceLLM": llama(llama_theirs),
        "LlamaIndex, Memograft": llama(llama_ours),
    }


def in_threads(ask: Ask, questions: Sequence[str]) -> list[str]:
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    _, tokenizer = load("tiny")
    model = build(tokenizer, args.new_tokens)
    runners = contestants(model, tokenizer, args.new_tokens)
    questions = [f"What is the capital of country number {n}?" for n in range(args.callers)]
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in runners}
    for turn in tqdm(range(args.repeat + 1), desc="repetitions"):
        for name, (ask, batch) in list(runners.items())[:: -1 if turn % 2 else 1]:  # no method is always the last
            ways: dict[str, tuple[int, Callable[[], Any]]] = {
                "1 caller": (ALONE, lambda ask=ask: [ask(question) for question in questions[:ALONE]]),
                f"{args.callers} callers": (args.callers, lambda ask=ask: in_threads(ask, questions)),
            }
            if batch is not None:
                ways[f".batch() of {args.callers}"] = (args.callers, lambda batch=batch: batch(questions))
            for way, (count, run) in ways.items():
                speed = count * args.new_tokens / seconds(run)
                if turn:  # the first one is a warm-up
                    speeds[name].setdefault(way, []).append(speed)
    results = {name: {way: summarised(way, name, speeds) for way in ways} for name, ways in speeds.items()}
    columns = ["1 caller", f"{args.callers} callers", f".batch() of {args.callers}"]
    print("| tokens per second, the framework's own wrapper = 1 | " + " | ".join(columns) + " |\n|---|---|---|---|")
    for name, cells in results.items():
        print(f"| {name} | " + " | ".join(f"{cells[c]['ratio']:.2f}" if c in cells else "-" for c in columns) + " |")
    record = {
        "benchmark": "frameworks",
        "model": f"llama, random weights: {SHAPE}",
        "new_tokens": args.new_tokens,
        "callers": args.callers,
        "results": results,
        "repetitions": args.repeat,
        "dtype": "float32",
        **provenance(torch.device("cpu")),
    }
    print(json.dumps(record))


def summarised(way: str, name: str, speeds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """The median speed, and the median of its ratios to the framework's own wrapper in the same repetition."""
    rival = next(other for other in speeds if other.split(",")[0] == name.split(",")[0])
    own, theirs = speeds[name][way], speeds[rival][way]
    ratios = [a / b for a, b in zip(own, theirs, strict=True)]
    return {"ratio": round(statistics.median(ratios), 3), "tokens_per_second": round(statistics.median(own), 1)}


if __name__ == "__main__":
    main()
