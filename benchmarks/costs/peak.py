"""Peak memory while answering with and without memorizing, each in a process of its own.

    python peak.py SHAPE TOKENS plain|memorized      prints the peak in bytes

The peak is the process's largest resident set (VmHWM in Linux's /proc) after the model was built and a short answer
was made, so that only the answer counts: weights, keys and values, and everything that is held while memorizing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

__all__ = ["extra"]


def extra(shape: str, tokens: int, target: float, repeat: int) -> list[object]:
    """(peak with memorizing - plain peak) / plain peak."""
    from costs.clock import Line

    found = []
    for _ in range(repeat):
        plain, memorized = (_child(shape, tokens, way) for way in ("plain", "memorized"))
        found.append((memorized - plain) / plain)
    numbers = (round(f(found), 3) for f in (statistics.median, min, max))
    title = f"extra peak memory while memorizing / plain peak, {shape}, T {tokens:,}"
    return [Line(title, *numbers, target=target, repetitions=repeat)]


def _child(shape: str, tokens: int, way: str) -> int:
    command = [sys.executable, __file__, shape, str(tokens), way]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    return int(done.stdout)


def _peak(shape: str, tokens: int, way: str) -> int:
    import torch

    from costs.memorizing import QUESTION, RANDOM
    from costs.models import document, random_engine
    from memograft import Request, Sampling

    torch.set_num_threads(1)
    memory = RANDOM if way == "memorized" else None
    with random_engine(shape) as engine:
        for length in (8, tokens):
            Path("/proc/self/clear_refs").write_text("5")  # begins to measure the peak anew
            engine.answer(Request(QUESTION, documents=[document(length)], memory=memory, sampling=Sampling(1)))
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_peak(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
