"""Calls in a forked child, which ends as a script does: its exit functions run."""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable


def in_a_fork(call: Callable[[], object]) -> int:
    """The exit code of a child that makes the call. A child that hangs is waited for until the test's time is up."""
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
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
