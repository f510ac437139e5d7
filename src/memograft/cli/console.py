"""Output of the commands: tables on stdout, progress and errors on stderr, JSON as the last line of stdout."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from memograft.errors import MemograftError


def out() -> Console:
    """The console for results."""
    return Console(highlight=False)


def err() -> Console:
    """The console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    err().print(Text(f"warning: {_one_line(message)}", style="yellow"), soft_wrap=True)


def progress_bar(shown: bool) -> Progress:
    """A progress bar on stderr; it shows nothing if that is not a terminal."""
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


@contextmanager
def reporting(as_json: bool) -> Iterator[dict[str, object]]:
    """Yield a dict for the result. With `as_json` it is printed at the end, and stdout has nothing else.

    MemograftErrors and OSErrors become one line (or one JSON object) and exit code 1.
    """
    result: dict[str, object] = {}
    error: Exception | None = None
    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # for prints of libraries
            yield result
    except BrokenPipeError:
        raise
    except (MemograftError, OSError) as e:
        error = e
        result = {"error": str(e), "type": type(e).__name__}
    if as_json:
        print_json(result)
    elif error is not None:
        err().print(Text(f"error: {_one_line(str(error))}", style="bold red"), soft_wrap=True)
    if error is not None:
        raise typer.Exit(1) from error


def print_json(result: Mapping[str, object]) -> None:
    """Print one line of JSON on stdout; numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(result), allow_nan=False))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _one_line(message: str) -> str:
    return " ".join(message.split())
