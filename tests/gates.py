"""Wait for events of other threads instead of fixed times. Only the test's time limit ends a wait."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import torch
from transformers import LogitsProcessor

from memograft import Engine


class Gate(LogitsProcessor):
    """Lets `free` tokens pass, then waits for `go`; counts its calls."""

    def __init__(self, free: int = 0) -> None:
        self.free, self.calls = free, 0
        self.waiting, self.go = threading.Event(), threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.free:
            self.waiting.set()
            assert self.go.wait(20), "nobody opened the gate"
        return scores


def queued(engine: Engine, count: int) -> None:
    """Wait until the queue of a busy engine has `count` submissions."""
    until(lambda: engine._worker._queue.qsize() >= count)


def until(happened: Callable[[], bool]) -> None:
    """Wait until `happened()` is true."""
    while not happened():
        time.sleep(0.002)


def waits(thread: int) -> bool:
    """Whether a thread is waiting for an answer or for a piece of one."""
    frame = sys._current_frames()[thread]
    inside = (frame.f_code.co_name, frame.f_back and frame.f_back.f_code.co_name)
    return inside[0] == "_next" or inside == ("wait", "exception")
