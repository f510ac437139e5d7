"""Calls in a forked child, which ends as a script does: its exit functions run."""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Callable


def in_a_fork(call: Callable[[], object], seconds: float = 60.0) -> int:
    """The exit code of a child that makes the call and ends as a script does; 99 where it does not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tried here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 99
