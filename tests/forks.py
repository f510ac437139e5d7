"""Forks: a child that makes a call and ends as a script does, with its exit functions."""

from __future__ import annotations

import atexit
import os
import traceback
import warnings
from collections.abc import Callable


def fork() -> int:
    """`os.fork`, which warns from Python 3.12 on where there are threads: forking beside them is what is tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_a_fork(call: Callable[[], object]) -> int:
    """The exit code of a child that makes the call. A child that hangs is waited for until the test's time is up."""
    child = fork()
    if child == 0:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            traceback.print_exc()  # into what is printed of the test
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
