"""`memograft datastore build | add | rm`: learn files into a datastore, and remove sources from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from memograft.cli.console import err, out, warn
from memograft.cli.datastore_info import Known, known_sources, must_exist
from memograft.cli.examples import Examples, read_examples
from memograft.cli.models import load_engine
from memograft.errors import PromptTooLongError, SettingsError

if TYPE_CHECKING:
    from memograft.engine import Engine
    from memograft.rtd.datastore import Datastore
    from memograft.rtd.files import IndexKind, Place

__all__ = ["add", "build", "remove"]


def build(
    paths: Sequence[Path],
    *,
    folder: Path,
    model: str,
    index: IndexKind,
    place: Place,
    stride: int | None,
    batch_size: int,
    quiet: bool,
) -> dict[str, object]:
    """Build a datastore of the files' examples, or continue an existing one; returns JSON values.

    Raises:
        SettingsError: a file or line is not an example; nothing was learned.
        PromptTooLongError: an example does not fit the model's window; those before it were learned.
        ModelMismatchError: the folder's datastore belongs to another model, place or index.
    """

    def learn(engine: Engine, items: Sequence[object]) -> Datastore:
        from memograft.rtd.datastore import Datastore

        return Datastore.build(
            engine,
            items,
            path=folder,
            place=place,
            index=index,
            stride=stride,
            batch_size=batch_size,
            progress=not quiet,
        )

    return _learn(folder, paths, model, learn, quiet)


def add(
    folder: Path, paths: Sequence[Path], *, model: str, stride: int | None, batch_size: int, quiet: bool
) -> dict[str, object]:
    """Add examples to the datastore in a folder; returns JSON values and raises like `build`.

    Raises:
        StoreError: there is no datastore.
    """
    must_exist(folder)

    def learn(engine: Engine, items: Sequence[object]) -> Datastore:
        from memograft.rtd.datastore import Datastore

        store = Datastore.open(folder)
        try:
            store.add(engine, items, stride=stride, batch_size=batch_size, progress=not quiet)
        except BaseException:
            store.close()
            raise
        return store

    return _learn(folder, paths, model, learn, quiet)


def remove(folder: Path, ids: Sequence[str], *, missing_ok: bool, compact: bool, quiet: bool) -> dict[str, object]:
    """Remove sources from the datastore in a folder; returns JSON values.

    Raises:
        SettingsError: an id is unknown, and not `missing_ok`; nothing was removed.
    """
    must_exist(folder)
    from memograft.rtd.datastore import Datastore

    with Datastore.open(folder) as store:
        known, before = set(store.ids()), len(store)
        missing = [id for id in dict.fromkeys(ids) if id not in known]
        if missing and not missing_ok:
            raise SettingsError(
                f"{folder} has no source {', '.join(map(repr, missing))}, so nothing was removed; "
                f"`memograft datastore info {folder} --ids` lists them, --missing-ok passes over the others"
            )
        removed = store.delete(ids)
        if compact:
            store.compact(progress=not quiet)
        left = len(store)
    if not quiet:
        line = f"removed {removed} sources with {before - left} entries; {left} entries are left in {folder}"
        out().print(Text(line), soft_wrap=True)
    return {
        "folder": str(folder),
        "removed": removed,
        "missing": missing,
        "entries_removed": before - left,
        "entries": left,
        "sources": len(known) - removed,
        "compacted": compact,
    }


def _learn(
    folder: Path, paths: Sequence[Path], model: str, learn: Callable[[Engine, Sequence[object]], Datastore], quiet: bool
) -> dict[str, object]:
    with err().status("reading"):
        examples = read_examples(paths)
    for failure in examples.failed:
        warn(f"not read: {failure['reason']}")
    before = {source.id: source for source in known_sources(folder)}
    changed = _changed(examples, before)
    with load_engine(model) as engine:
        started = time.perf_counter()
        try:
            with learn(engine, examples.items) as store:
                made = {
                    "folder": str(folder),
                    "model": model,
                    "added": len(examples.items) - len(before.keys() & examples.checked.keys()),
                    "already": len(before.keys() & examples.checked.keys()),
                    "changed": changed,
                    "failed": examples.failed,
                    "entries": len(store),
                    "sources": len(store.ids()),
                    "place": store.header.place,
                    "index": store.header.index,
                    "dimension": store.header.dimension,
                    "calibration": dict(store.header.calibration),
                    "seconds": time.perf_counter() - started,
                }
        except PromptTooLongError as error:
            place = next((p for id, p in examples.places.items() if repr(id) in str(error)), None)
            raise PromptTooLongError(f"{place}: {error}", tokens=error.tokens, limit=error.limit) from error
    if changed:
        warn(
            f"{len(changed)} sources have changed since they were learned, and the old ones were kept "
            f"(the first: {changed[0]}); remove them with `memograft datastore rm`, and repeat the command"
        )
    if not quiet:
        there = f", {made['already']} were there already" if made["already"] else ""
        line = f"learned {made['added']} examples{there}; {made['entries']} entries of {made['sources']} sources "
        out().print(Text(f"{line}in {folder}, {made['seconds']:.2f} s"), soft_wrap=True)
    return made


def _changed(examples: Examples, before: dict[str, Known]) -> list[str]:
    """Ids whose text or prompt differs from the datastore's."""

    def says(id: str) -> tuple[str, str]:
        return examples.checked[id].source.text, examples.checked[id].source.prompt

    return [id for id in examples.checked if id in before and says(id) != (before[id].text, before[id].prompt)]
