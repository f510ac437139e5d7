"""A pool of Ray's workers, each with a model of its own, and the results of rows that they work on."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memograft.errors import MemograftError, MissingExtraError, SettingsError

__all__ = ["Pool", "check_ray", "ray_at", "there"]

_OBJECTS = 256 << 20  # bytes of the local Ray's object store: only texts pass through it
_MOST = 4096  # pieces of work: one batch each, or several if there are more

Row = Mapping[str, str | int]
Batch = Mapping[str, Sequence[str | int]]


@dataclass(frozen=True)
class Pool:
    """How many workers there are, and where.

    Attributes:
        workers: processes that have a model each.
        address: of a Ray cluster, such as "auto"; None starts Ray on this machine and ends it afterwards, unless the
            program has started it.
        cpus: cores of a worker, which are also its threads.
        gpus: GPUs of a worker; a half lets two share one.

    Raises:
        SettingsError: a number is out of its range.
    """

    workers: int = 1
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        for name, least in {"workers": 1, "cpus": 1, "gpus": 0}.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole or (name == "gpus" and isinstance(value, float))) or not least <= value < math.inf:
                raise SettingsError(f"`{name}` must be a number of at least {least}, got {value!r}")

    @property
    def alone(self) -> bool:
        """Whether this process does the work itself, without Ray."""
        return self.workers == 1 and self.address is None

    def results(
        self,
        worker: Callable[..., Callable[[Batch], Batch]],
        made_of: Mapping[str, object],
        rows: Sequence[Row],
        batch: int,
    ) -> Iterator[Row]:
        """Let workers `worker(**made_of)` work on batches of rows, and yield the rows of their results, in any order.

        A batch whose worker died is given to another one, which does all of it again.

        Raises:
            MemograftError: a worker raised something; without Ray, what it raised.
            MissingExtraError: Ray is not installed.
        """
        if self.alone:
            work = worker(**made_of)
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                yield from _rows(work({name: [row[name] for row in part] for name in rows[0]}))
            return
        with ray_at(self):
            from ray import data
            from ray.exceptions import RayError

            blocks = math.ceil(len(rows) / batch)
            workers, blocks = min(self.workers, blocks), min(blocks, _MOST)
            mapped = data.from_items([dict(row) for row in rows], override_num_blocks=blocks).map_batches(
                worker,
                fn_constructor_kwargs=dict(made_of),
                batch_size=batch,
                compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            try:
                for part in mapped.iter_batches(batch_size=None):
                    yield from _rows({name: column.tolist() for name, column in part.items()})
            except RayError as error:
                # Ray passes a worker's exception on as text, in which advice of its own follows.
                lines = re.findall(r"^[\w.]*Error: .*", str(error), re.MULTILINE) or [type(error).__name__]
                said = lines[-1].removeprefix("memograft.errors.")
                raise MemograftError(f"a worker failed: {said}; try it with one worker, which shows all") from error


@contextmanager
def ray_at(pool: Pool) -> Iterator[None]:
    """Connect to a pool's Ray, or start it on this machine; one that the program has started already is used.

    Raises:
        MissingExtraError: Ray is not installed.
        SettingsError: there is no cluster at the address.
    """
    check_ray()
    import ray
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    data.DataContext.get_current().enable_progress_bars = False  # there is one bar, of documents
    if ray.is_initialized():
        yield
        return
    options = {"num_cpus": pool.workers * pool.cpus, "object_store_memory": _OBJECTS, "include_dashboard": False}
    if pool.gpus:
        options["num_gpus"] = math.ceil(pool.workers * pool.gpus)
    try:
        ray.init(pool.address, log_to_driver=False, logging_level="warning", **({} if pool.address else options))
    except ConnectionError as error:
        raise SettingsError(
            f"there is no Ray cluster at {pool.address!r} ({error}); start one with `ray start --head`, or leave the "
            "address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_ray() -> None:
    """Check that Ray is installed, with what we use of it.

    Raises:
        MissingExtraError: it is not.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody
    try:
        import ray.data
        import ray.serve  # noqa: F401
    except ImportError as error:
        missing = f"{error.name} is not installed" if error.name else f"it cannot be imported ({error})"
        raise MissingExtraError(f"several workers need Ray, and {missing}; run pip install 'memograft[ray]'") from error


def there(name: str) -> str:
    """The absolute path of a file or folder, for workers, which may run in another folder; or an id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _rows(batch: Batch) -> Iterator[Row]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
