"""`memograft`, the command. `cli/app.py` has the commands and needs typer; this file needs only Python."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 an error (reported in one line), 2 wrong usage."""
    try:
        from memograft.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("typer", "click", "rich"):
            raise
        sys.exit(f'error: the command needs {error.name}, which is not installed; run pip install "memograft[cli]"')
    app(prog_name="memograft")
