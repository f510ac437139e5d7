"""Read sets of the Hugging Face hub as entries, with the library `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation.entry import Entry

__all__ = ["from_hub", "is_hub_id"]

_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<part>\w+))?")
_FILE = re.compile(r"\.(jsonl?|gz|xz|csv|parquet|txt)$")
_PARTS = ("validation", "dev", "test", "train")  # the first that exists


def is_hub_id(name: str) -> bool:
    """Whether this can be "owner/name" or "owner/name/config", optionally with ":part", and is not a file name."""
    return _ID.fullmatch(name) is not None and not _FILE.search(name)


def from_hub(name: str) -> Iterator[Entry]:
    """The rows of a set: of the named part ("owner/name:train"), else of validation, dev, test or train.

    Raises:
        MissingExtraError: `datasets` is not installed.
        SettingsError: the hub cannot be reached, or has no such set, configuration or part.
    """
    try:
        from datasets import get_dataset_split_names, load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"there is no file {name}, and to read it as a set of the hub the library `datasets` is missing; name a "
            "file, or run pip install datasets"
        ) from error
    found = _ID.fullmatch(name)
    if found is None:
        raise SettingsError(
            f'a set of the hub must be written "owner/name", "owner/name/config" or with ":part" after '
            f"it, got {name!r}; check the name"
        )
    id, config, part = found["id"], found["config"], found["part"]
    try:
        parts = get_dataset_split_names(id, config)
        part = part or next((p for p in _PARTS if p in parts), parts[0])
        rows: Iterable[object] = load_dataset(id, config, split=part)
    except Exception as error:  # errors of hub, network and files have no common class
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingsError(
            f"{name} must be a file or a set of the hub that can be reached, got {type(error).__name__} ({said}); "
            "check the name (owner/name/config:part) and the network, or name a file"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield Entry(name, f"row {number}", row, "a row")
