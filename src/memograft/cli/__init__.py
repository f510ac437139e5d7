"""`memograft`, the command. The commands are in `cli/app.py`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 an error (reported in one line), 2 wrong usage."""
    from memograft.cli.app import app

    app(prog_name="memograft")
