"""`memograft lm-eval`: the command line of lm-evaluation-harness with our model and tasks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memograft.cli.console import reporting

_WITH_TASKS = ("run", "ls", "validate")  # commands of the harness that take --include_path


def lm_eval(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments of lm-eval, such as run --model memograft --tasks ...")
    ] = None,
) -> None:
    """Run lm-evaluation-harness: its own command line, with the model "memograft" and the tasks memograft_*.

    The tasks are found unless you pass an --include_path of your own. Its options: memograft lm-eval run --help.
    """
    given = list(arguments or [])
    with reporting(as_json=False):
        import memograft.lm_eval as ours  # registers the model

    from lm_eval.__main__ import cli_evaluate

    if given and given[0] not in _WITH_TASKS:
        given = ["run", *given]  # as the harness itself does
    if given and not any(a.split("=")[0] in ("--include_path", "-h", "--help") for a in given):
        given += ["--include_path", str(ours.TASKS)]
    before, sys.argv = sys.argv, ["lm-eval", *given]
    try:
        with reporting(as_json=False):
            cli_evaluate()
    finally:
        sys.argv = before
