"""Hooks of the site (mkdocs.yml): pages from files outside docs/, links between pages, and the reference of commands.

A link in a file is relative to that file, so it also works on GitHub. On the site it becomes a link to the page of its
target or, if the target has no page, to the file in the repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # file in the repository -> page of the site
    "benchmarks/LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "cookbook/README.md": "cookbook.md",
    "integrations/README.md": "integrations.md",
    "integrations/langchain/README.md": "langchain.md",
    "integrations/llama-index/README.md": "llama-index.md",
    "src/memograft/models/tiny/README.md": "tiny.md",
}
ELSEWHERE = {"README.md": "index.md", "docs": "index.md"}  # targets without a page of their own
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)((?:#[^)\s]*)?\))")
COMMANDS = "<!-- commands -->"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_body((ROOT / source).read_text(encoding="utf-8"))))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files into links between pages, and insert the reference of the commands."""
    there = page.file.src_uri
    source = next((file for file, name in PAGES.items() if name == there), f"docs/{there}")

    def linked(match: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(source), match[2]))
        name = PAGES.get(target) or ELSEWHERE.get(target) or target.removeprefix("docs/")
        if name != target and files.get_file_from_path(name):
            return match[1] + os.path.relpath(name, os.path.dirname(there) or ".") + match[3]
        if not (ROOT / target).exists():
            return match[0]  # mkdocs reports the broken link
        return match[1] + config.extra["source"] + target + match[3]

    markdown = LINK.sub(linked, markdown)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, "\n".join(_commands()))
    return markdown


def _body(text: str) -> str:
    """Remove the front matter of a model card."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)


def _commands() -> Iterator[str]:
    import typer

    from memograft.cli.app import app

    yield from _command(typer.main.get_command(app), "memograft")


def _command(command: Any, name: str) -> Iterator[str]:
    """Yield a heading, the help text and a table of arguments and options; then the same for each subcommand."""
    inner = getattr(command, "commands", {})
    if " " in name:
        yield f"\n{'##' if name.count(' ') == 1 else '###'} {name}\n\n{command.help}\n"
    if not inner:
        yield "| argument or option | default | meaning |\n|---|---|---|"
        for parameter in command.params:
            default = parameter.default if isinstance(parameter.default, str | int | float | Path) else None
            shown = "" if default is None or default is False else f"`{default}`"
            what = ", ".join(f"`{o}`" for o in parameter.opts)
            if parameter.param_type_name == "argument":
                what = f"`{parameter.name.upper()}`"
            text = " ".join((parameter.help or "").split()).replace("|", "\\|")
            yield f"| {what} | {shown} | {text} |"
    for word, part in inner.items():
        yield from _command(part, f"{name} {word}")
