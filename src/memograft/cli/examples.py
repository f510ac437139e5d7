"""Read files as examples of a datastore, a JSONL line or a text document each.

All are checked before a model is loaded. The default id of a line is the core's hash of its content; the id of a
document is its path below the named folder. Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memograft.errors import MissingExtraError, SettingsError
from memograft.passages.reading import SUFFIXES, find_files, read_file
from memograft.rtd.examples import Example, checked, turns

__all__ = ["Examples", "read_examples"]

_LINES = ".jsonl"


@dataclass
class Examples:
    """The examples of the files.

    Attributes:
        items: the examples in the form of `Datastore.build`, each id once.
        checked: the same by id, as checked by the core.
        places: the file of each id, and in JSONL its line.
        failed: files in folders that could not be read, with the reason.
    """

    items: list[object] = field(default_factory=list)
    checked: dict[str, Example] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)


def read_examples(paths: Sequence[Path]) -> Examples:
    """Read JSONL files, text documents and folders of both.

    Raises:
        SettingsError: a JSONL line is not an example, two different examples have the same id, a named file cannot be
            read, or there are no examples.
    """
    found = Examples()
    for path in paths:
        for file in _files(path):
            if file.suffix.lower() == _LINES:
                for place, item in _lines(file):
                    _add(found, item, place)
                continue
            try:
                text = read_file(file)
            except (SettingsError, MissingExtraError) as error:
                if file == path:
                    raise
                found.failed.append({"file": str(file), "reason": str(error)})
                continue
            name = file.name if file == path else file.relative_to(path).as_posix()
            about = {"source": name, "title": text.title}
            _add(found, {"text": text.text, "id": name, "metadata": about}, str(file))
    if not found.items:
        raise SettingsError(
            found.failed[0]["reason"]
            if found.failed
            else f"{', '.join(map(str, paths))}: there is nothing to learn from; name jsonl, txt, md, pdf, html or "
            "docx files"
        )
    return found


def _files(path: Path) -> list[Path]:
    """The file itself, or the files in a folder, without hidden ones."""
    if not path.is_dir():
        if path.exists() and path.suffix.lower() not in SUFFIXES | {_LINES}:
            known = ", ".join(sorted(SUFFIXES | {_LINES}))
            raise SettingsError(f"{path} must be one of {known}, got {path.suffix!r}; convert it")
        return find_files([path])
    lines = (p for p in path.rglob(f"*{_LINES}") if p.is_file())
    shown = (p for p in lines if not any(part.startswith(".") for part in p.relative_to(path).parts))
    return sorted([*find_files([path]), *shown])


def _lines(file: Path) -> Iterator[tuple[str, object]]:
    """(place, example) of each line. A conversation without `answer` gives one for each turn of the assistant."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} must be UTF-8 text, and is not at byte {error.start}; convert it") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be opened ({error.strerror or error}); check its permissions") from error
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split at U+2028
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            item = json.loads(line)
            json.dumps(item, ensure_ascii=False).encode()  # fails for unpaired surrogates, which tokenizers refuse
        except json.JSONDecodeError as error:
            raise SettingsError(
                f"{place} must be a JSON object, but: {error.msg} at column {error.colno}; correct it, or remove it"
            ) from error
        except (UnicodeEncodeError, RecursionError) as error:
            raise SettingsError(f"{place} must hold text, but: {error}; correct it, or remove it") from error
        for part in _turns(item):
            yield place, part


def _turns(item: object) -> list[object]:
    if not isinstance(item, Mapping) or "answer" in item or "text" in item:
        return [item]
    messages = item.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        return [item]
    parts: list[dict[object, object]] = [
        {**item, "messages": before, "answer": answer} for before, answer in turns(messages)
    ]
    if item.get("id") and len(parts) > 1:
        return [{**part, "id": f"{item['id']}#{n}"} for n, part in enumerate(parts)]
    return [*parts] or [item]


def _add(found: Examples, item: object, place: str) -> None:
    try:
        (example,) = checked([item])
    except SettingsError as error:
        said = str(error).replace("examples[0]", place)
        raise SettingsError(said if place in said else f"{place}: {said}") from error
    id = example.source.id
    if id not in found.checked:
        found.items.append(item)
        found.checked[id], found.places[id] = example, place
    elif found.checked[id] != example:
        raise SettingsError(
            f"{place} has the id {id!r} of {found.places[id]}, but another content; give each an id of its own"
        )
