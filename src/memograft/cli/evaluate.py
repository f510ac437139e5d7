"""`memograft eval`: convert the options to the runner's arguments, and its records to one JSON object."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memograft.cli.console import err, warn
from memograft.cli.models import load_engine
from memograft.errors import SettingsError
from memograft.evaluation import plots
from memograft.evaluation.cells import Record
from memograft.evaluation.items import SPLITS, Item, sets_of, world
from memograft.evaluation.methods import METHODS, Method, from_gist, from_mac, from_settings
from memograft.evaluation.protocol import protocol_of
from memograft.evaluation.readers import Reading, read
from memograft.page import template

if TYPE_CHECKING:
    from memograft import Engine
    from memograft.cluster.pool import Pool

WORLD = "world"
EXAMPLES = 64  # worked examples of each set for few-shot and RTD
NOT_KNOWN = "the model does not answer it without a document"


@dataclass(frozen=True)
class Questions:
    """The questions to ask, as given by the command's options."""

    path: str
    format: str | None
    contexts: Sequence[str]
    split: str | None
    n: int | None
    protocol: str
    every_swap: bool
    sets: Sequence[str]
    only_known: Sequence[str]

    def read(self) -> Reading:
        """Read the questions. Of the sets in `only_known` all are read, because they are filtered later.

        Raises:
            SettingsError: an option cannot be combined with these questions.
        """
        n = None if self.only_known else self.n
        if self.path == WORLD:
            if self.format or self.contexts or self.every_swap or self.protocol != "plain":
                raise SettingsError(
                    '"world" has its own sets and its own protocol, got `--format`, `--context`, `--every-swap` or '
                    "`--protocol`; leave it out, or choose sets with `--sets`"
                )
            reading = Reading(world(self.split or "test", n), {}, WORLD, self.split or "test")
        else:
            reading = read(
                self.path,
                format=self.format,
                contexts=self.contexts or None,
                split=self.split,
                n=n,
                protocol=self.protocol,
                every_swap=self.every_swap,
            )
        items = _of_sets(reading.items, self.sets, "--sets")
        for name in self.only_known:
            _of_sets(items, [name], "--only-known")
        cut = [
            i for name in sets_of(items) for i in _of_set(items, name)[: None if name in self.only_known else self.n]
        ]
        return replace(reading, items=cut)

    def name(self, reading: Reading) -> str:
        """A name for the questions."""
        name = self.path if reading.format == WORLD else Path(self.path).name
        return name if reading.split == "all" else f"{name}, {reading.split}"


def evaluate(
    questions: Questions,
    *,
    model: str,
    names: Sequence[str],
    settings: Sequence[str],
    gists: Sequence[str],
    macs: Sequence[Path],
    against: Sequence[str],
    folder: Path,
    plot: Path | None,
    cub: Path | None,
    html: Path | None,
    max_new_tokens: int | None,
    pool: Pool,
) -> tuple[dict[str, object], str]:
    """(JSON values of the results and their environment, the table in Markdown)."""
    reading, way = questions.read(), protocol_of(questions.protocol)
    items, skipped = reading.items, reading.skipped
    longest = max_new_tokens or max(way.max_new_tokens(item.task) for item in items)
    methods = _methods(names, settings, gists, macs, with_examples=reading.split in SPLITS)
    against = against or [name for name in ("plain, restricted",) if name in methods]
    for name in against:
        if name not in methods:
            raise SettingsError(f"`--against` must be one of {list(methods)}, got {name!r}; add it with `--method`")
    if plot:
        plots.check(methods, sets_of(items), plot)
    if html:
        template.check(html)
    from memograft.evaluation import utilisation
    from memograft.evaluation.metrics import summary, table
    from memograft.evaluation.provenance import provenance
    from memograft.evaluation.runner import run

    if cub:
        utilisation.check(sets_of(items))
        plots.check_picture(cub)
        methods.setdefault("no document", METHODS["no document"])
    began = time.perf_counter()
    with load_engine(model) as engine:
        ignore_case = reading.format != WORLD
        if questions.only_known:
            items, skipped = _known(engine, questions, reading, folder, longest, ignore_case)
        tell_skipped(skipped)
        examples = _examples(questions, reading, methods)
        if not pool.alone:
            from memograft.cluster.cells import answer_cells

            answer_cells(
                pool, model, methods, items, folder, max_new_tokens=longest, ignore_case=ignore_case, examples=examples
            )
        records = run(
            engine, methods, items, folder, max_new_tokens=longest, ignore_case=ignore_case, examples=examples
        )
        about = {
            "fingerprint": engine.fingerprint,
            "default": asdict(engine.defaults),
            **provenance(engine.model.device),
        }
    results = summary(records, against)
    warn_of_failures(records)
    label = label_of(model)
    asked = questions.name(reading)
    count = max(cell["n"] for by_set in results.values() for cell in by_set.values())
    if plot:
        ours = [*settings, *(name for name in methods if name.startswith("memorized"))]
        title = f"What memorizing gains and costs: {label}, {asked}, n = {count}"
        plots.draw(plots.dots(results, ours), plot, title, [name for name in plots.COSTS if name in sets_of(items)])
        err().print(f"picture: {plot}", markup=False, soft_wrap=True)
    shown, used = table(results), {}
    if cub:
        used = {"utilisation": utilisation.utilisation(records)}
        shown += f"\n\n{utilisation.table(used['utilisation'])}"
        plots.bars(used["utilisation"], cub, f"Three kinds of pages: {label}, {asked}, n = {count}")
        err().print(f"picture: {cub}", markup=False, soft_wrap=True)
    rows = [row for by_set in records.values() for cell in by_set.values() for row in cell]
    made = {
        "benchmark": "eval",
        "model": label,
        "questions": asked,
        "format": reading.format,
        "split": reading.split,
        "protocol": way.name,
        "n": count,
        "skipped": dict(skipped),
        "results": results,
        **used,
        "settings": {name: method.settings() for name, method in methods.items()},
        "max_new_tokens": longest,
        "commits_of_the_answers": sorted({row["commit"] for row in rows}),
        **about,
        "seconds": round(time.perf_counter() - began, 2),
    }
    if html:
        from memograft.evaluation import report

        report.write(html, results, records, items, made)
        err().print(f"page: {html}", markup=False, soft_wrap=True)
    return made, shown


def _methods(
    names: Sequence[str],
    settings: Sequence[str],
    gists: Sequence[str],
    macs: Sequence[Path],
    with_examples: bool = True,
) -> dict[str, Method]:
    """The requested methods, or all that are possible; "plain" first, because the others are compared with it."""
    for name in names:
        if name not in METHODS:
            raise SettingsError(f"`--method` must be one of {list(METHODS)}, got {name!r}; check the name")
    chosen = ["plain", *(n for n in names if n != "plain")]
    if not names and not settings and not gists and not macs:
        chosen = [name for name, method in METHODS.items() if with_examples or not method.needs_examples]
    own = {text: from_settings(text) for text in settings} | {f"gist {text}": from_gist(text) for text in gists}
    for path in macs:
        own |= {f"mac {path}": from_mac(path, documents=False), f"mac {path}, documents": from_mac(path)}
    return {name: METHODS[name] for name in chosen} | own


def _examples(questions: Questions, reading: Reading, methods: Mapping[str, Method]) -> list[Item]:
    """Worked examples of the other split, for methods that need them; empty if there is no split."""
    if reading.split not in SPLITS or not any(method.needs_examples for method in methods.values()):
        return []
    other = "test" if reading.split == "tune" else "tune"
    return replace(questions, split=other, n=EXAMPLES, only_known=()).read().items


def _of_sets(items: Sequence[Item], sets: Sequence[str], option: str) -> list[Item]:
    there = sets_of(items)
    for name in sets:
        if name not in there:
            raise SettingsError(f"`{option}` must be one of {there}, got {name!r}; check the name")
    return [item for item in items if not sets or item.set in sets]


def _of_set(items: Sequence[Item], name: str) -> list[Item]:
    return [item for item in items if item.set == name]


def _known(
    engine: Engine, questions: Questions, reading: Reading, folder: Path, max_new_tokens: int, ignore_case: bool
) -> tuple[list[Item], Mapping[str, int]]:
    """The items without those of `--only-known` that the model does not know, and the numbers of skipped items."""
    from memograft.evaluation.known import known

    items, skipped = [], Counter(reading.skipped)
    for name in sets_of(reading.items):
        of_set = _of_set(reading.items, name)
        if name in questions.only_known:
            of_set, skipped[f"{name}: {NOT_KNOWN}"] = known(
                engine, of_set, questions.n, folder, max_new_tokens=max_new_tokens, ignore_case=ignore_case
            )
        if not of_set:
            raise SettingsError(
                f"`--only-known` must leave a question of the set {name!r}, got none that the model answers without a "
                "document; leave it out, or ask more questions"
            )
        items += of_set
    return items, +skipped


def label_of(model: str) -> str:
    """A name for a model, without the path of its folder."""
    return Path(model).name if Path(model).exists() else model


def tell_skipped(skipped: Mapping[str, int]) -> None:
    """Print on stderr how many questions were skipped, and why."""
    for reason, count in skipped.items():
        err().print(f"skipped: {count}: {reason}", markup=False, soft_wrap=True)


def warn_of_failures(records: Mapping[str, Mapping[str, Sequence[Record]]]) -> None:
    """Warn about cells with errors, which count as wrong answers."""
    for method, by_set in records.items():
        for name, rows in by_set.items():
            failed = [row["error"] for row in rows if "error" in row]
            if failed:
                warn(
                    f"{method}: {name}: {len(failed)} of {len(rows)} failed and count as wrong; the first: {failed[0]}"
                )
