"""Run a call in a forked child, which exits normally, with its exit functions."""

from __future__ import annotations

import atexit
import os
import traceback
import warnings
from collections.abc import Callable


def fork() -> int:
    """`os.fork` without Python 3.12's warning about forks with threads, which is what the tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_a_fork(call: Callable[[], object]) -> int:
    """The exit code of a child that makes the call. A child that hangs fails by the test's time limit."""
    child = fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()  # shown in the test's output
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
