"""Train tiny: seeded, resumable after any interruption, with a progress bar.

    python recipes/tiny/train.py --preset cpu --out runs/tiny        # 2.3 M parameters, 2 cores, under 3 hours
    python recipes/tiny/train.py --preset gpu --out runs/tiny-gpu --text leads.jsonl.xz squad/train-v1.1.json.xz

The same command continues from the last checkpoint. Checkpoints have only tensors (safetensors) and JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import text
import torch
from data import Example, batches
from evaluate import teacher_forced
from muon import Muon
from safetensors.torch import load_file, save_file
from tokenizer import for_transformers, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

RealText = Callable[[random.Random], Example]


@dataclass(frozen=True)
class Preset:
    """All settings that determine the result, except the seed."""

    width: int
    ffn: int
    layers: int
    heads: int
    vocab: int
    window: int  # max_position_embeddings of the model
    rows: int  # per step
    length: int  # tokens per row
    steps: int
    phases: tuple[int, ...]  # the steps at which each mix after the first begins (MIXES in data.py)
    decay: float  # share of the steps, at the end, in which the rates fall to zero
    matrix_rate: float  # Muon, for the matrices inside the layers
    other_rate: float  # AdamW, for embeddings and norms
    warmup: int = 60
    bf16: bool = False


PRESETS = {
    "cpu": Preset(192, 576, 4, 6, 2048, 512, 16, 320, 3600, (400, 700, 900, 1200, 1900, 3300), 0.48, 4e-3, 4e-3),
    # Another shape with the same recipe, to check that settings tuned on tiny also work on it.
    "deep": Preset(160, 480, 5, 5, 2048, 512, 16, 320, 3600, (400, 700, 900, 1200, 1900, 3300), 0.48, 4e-3, 4e-3),
    "gpu": Preset(
        512, 1536, 8, 8, 8192, 1024, 64, 512, 5000, (500, 900, 1200, 1600, 3000, 4600), 0.3, 3e-3, 2e-3, bf16=True
    ),
}


def mask(owner: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, 1, T, T) bool: causal, and only within a conversation."""
    same = owner[:, None, :, None] == owner[:, None, None, :]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool, device=owner.device).tril()
    return same & causal


def positions(owner: Tensor) -> Tensor:
    """(B, T) document numbers -> (B, T) positions that start at 0 in every conversation."""
    index = torch.arange(owner.shape[1], device=owner.device).expand_as(owner)
    starts = torch.ones_like(owner, dtype=torch.bool)
    starts[:, 1:] = owner[:, 1:] != owner[:, :-1]
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def loss_of(model: torch.nn.Module, ids: Tensor, weights: Tensor, owner: Tensor) -> Tensor:
    """Weighted next-token cross-entropy, each (B, T); the first token of a conversation has weight 0."""
    logits = model(input_ids=ids, attention_mask=mask(owner), position_ids=positions(owner), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weights[:, 1:].flatten()
    return (losses * w).sum() / w.sum()


def rate(step: int, preset: Preset) -> float:
    """Share of the full learning rate at this step: warm-up, constant, linear to zero."""
    left = (preset.steps - step) / (preset.decay * preset.steps)
    return min(1.0, (step + 1) / preset.warmup, max(left, 0.0))


def optimisers(model: torch.nn.Module, preset: Preset) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    return [
        Muon(matrices, lr=preset.matrix_rate, weight_decay=0.02),
        torch.optim.AdamW(others, lr=preset.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def save(folder: Path, step: int, model: torch.nn.Module, opts: list[torch.optim.Optimizer]) -> None:
    """Write a checkpoint beside the last one and then replace it, so a crash leaves a complete one."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for number, opt in enumerate(opts):
        for index, state in opt.state_dict()["state"].items():
            tensors |= {f"opt.{number}.{index}.{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    tmp = folder / "checkpoint.tmp"
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, tmp, metadata={"step": str(step)})
    os.replace(tmp, folder / "checkpoint.safetensors")


def resume(folder: Path, model: torch.nn.Module, opts: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint, if there is one; return the next step."""
    from safetensors import safe_open

    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False)
    for number, opt in enumerate(opts):
        packed = opt.state_dict()
        for key, value in tensors.items():
            if key.startswith(f"opt.{number}."):
                _, _, index, name = key.split(".")
                packed["state"].setdefault(int(index), {})[name] = value
        opt.load_state_dict(packed)
    with safe_open(path, "pt") as f:
        return int(f.metadata()["step"])


def get_tokenizer(folder: Path, preset: Preset, seed: int, real: RealText | None) -> Tokenizer:
    path = folder / "bpe.json"
    if not path.exists():
        train_tokenizer(preset.vocab, seed, real).save(str(path))
    return Tokenizer.from_file(str(path))


def build(preset: Preset, tokenizer: Tokenizer) -> LlamaForCausalLM:
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("bos", "end", "pad")}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=preset.width,
            intermediate_size=preset.ffn,
            num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads,
            num_key_value_heads=preset.heads,
            max_position_embeddings=preset.window,
            tie_word_embeddings=True,
            bos_token_id=ids["bos"],
            eos_token_id=ids["end"],
            pad_token_id=ids["pad"],
        )
    )


def export(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, preset: Preset) -> None:
    """Write the finished model for transformers, in float16, with its tokenizer."""
    target = folder / "model"
    model.to(torch.float16).save_pretrained(target)
    for_transformers(tokenizer, preset.window).save_pretrained(target)


def train(
    preset: Preset,
    seed: int,
    folder: Path,
    every: int,
    compile_model: bool,
    real: RealText | None,
    stop_at: int | None = None,
    scored: int = 96,
) -> None:
    """Train to the end, or to step `stop_at`; a later call continues from the last checkpoint.

    Every `every` steps, a checkpoint is written and `scored` questions of each set are asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"seed": seed, **asdict(preset)}, indent=1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = get_tokenizer(folder, preset, seed, real)
    torch.manual_seed(seed)
    model = build(preset, tokenizer).to(device)
    opts = optimisers(model, preset)
    start = resume(folder, model, opts)
    runner = torch.compile(model) if compile_model else model
    stream = batches(tokenizer, seed, preset.rows, preset.length, preset.phases, start, real)
    last = stop_at or preset.steps
    bar = tqdm(range(start, last), initial=start, total=preset.steps, mininterval=5)
    for step in bar:
        began = time.perf_counter()
        ids, weights, owner = (torch.from_numpy(a).to(device) for a in next(stream))
        for opt, base in zip(opts, (preset.matrix_rate, preset.other_rate), strict=True):
            for group in opt.param_groups:
                group["lr"] = base * rate(step, preset)
        with torch.autocast(device, torch.bfloat16, enabled=preset.bf16):
            loss = loss_of(runner, ids, weights, owner)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {step}; the checkpoint before it stands")
        bar.set_postfix(loss=f"{loss.item():.3f}", s=f"{time.perf_counter() - began:.2f}")
        if (step + 1) % every == 0 or step + 1 == last:
            scores = teacher_forced(model, tokenizer, n=scored)
            line = json.dumps({"step": step + 1, "loss": round(loss.item(), 4), **scores})
            tqdm.write(line)
            with (folder / "log.jsonl").open("a") as f:
                f.write(line + "\n")
            save(folder, step + 1, model, opts)
    if last == preset.steps:
        export(folder, model, tokenizer, preset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="real text to mix in (see text.py)")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    found = text.load(args.text)
    real = (lambda rng: text.example(found, rng)) if found else None
    train(replace(preset, steps=args.steps or preset.steps), args.seed, args.out, args.every, not args.no_compile, real)


if __name__ == "__main__":
    main()
