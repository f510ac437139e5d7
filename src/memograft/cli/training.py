"""`memograft train`: read questions, train, and write what was trained with a picture of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from memograft.cli.console import warn
from memograft.cli.models import load_engine
from memograft.errors import MissingExtraError, SettingsError
from memograft.evaluation.files import entries
from memograft.evaluation.hub import is_hub_id
from memograft.evaluation.readers import read
from memograft.evaluation.readers.formats import OWN, recognised

if TYPE_CHECKING:
    from memograft.memory.base import Model
    from memograft.memory.fit import Progress
    from memograft.memory.gist.data import Sample

_PICTURE = "loss.png"
_SHOWN = 50  # steps whose mean is the loss that is reported


S = TypeVar("S", contravariant=True)


class Train(Protocol[S]):
    """`train` of a kind of memory that is learned."""

    def __call__(
        self,
        model: Model,
        samples: Sequence[Sample],
        settings: S,
        folder: Path,
        *,
        held_out: Sequence[Sample],
        start: Path | None,
        every: int,
        stop_at: int | None,
        progress: bool,
    ) -> tuple[object, Progress]:
        """Train to the end, or to step `stop_at`."""
        ...


def learn(
    train: Train[S],
    settings: S,
    *,
    title: str,
    data: str,
    folder: Path,
    model: str,
    format: str | None,
    contexts: Sequence[str],
    n: int | None,
    held_out: str | None,
    held_out_n: int,
    start: Path | None,
    every: int,
    stop_at: int | None,
    device: str | None,
    quiet: bool,
) -> dict[str, object]:
    """Train or continue; returns JSON values. `title` is that of the picture.

    Raises:
        SettingsError: the questions cannot be read, or the folder has a run with other settings.
        UnsupportedModelError: the model cannot have learned tokens.
    """
    from memograft.evaluation.plots import curve
    from memograft.memory.base import Model

    samples = _samples(data, format, contexts, n)
    scored = _samples(held_out, format, contexts, held_out_n) if held_out is not None else []
    with load_engine(model, device) as engine:
        # Trained in this thread, which Ctrl-C ends; the engine's thread has nothing else to do.
        backbone, prompts = engine.with_model(lambda backbone, prompts: (backbone, prompts))
        parts = Model(backbone, prompts, prompts.tokenizer.pad_token_id or 0, engine.fingerprint)
        _, done = train(
            parts,
            samples,
            settings,
            folder,
            held_out=scored,
            start=start,
            every=every,
            stop_at=stop_at,
            progress=not quiet,
        )
    try:
        picture = curve(done.losses, folder / _PICTURE, title)
    except MissingExtraError as error:
        picture = None
        warn(str(error))
    last = done.losses[-_SHOWN:]
    return {
        "folder": str(folder),
        "steps": done.step,
        "tokens_seen": done.tokens,
        "loss": round(sum(last) / len(last), 4),
        "scores": done.scores,
        "picture": str(picture) if picture is not None else None,
    }


def _samples(data: str, format: str | None, contexts: Sequence[str], n: int | None) -> list[Sample]:
    """The questions of a file as samples. Of a public set, questions whose page has the answer."""
    from memograft.memory.gist.data import Sample

    if not contexts and not _is_own(data, format):
        contexts = ["agrees"]
    items = read(data, format=format, contexts=contexts or None, split="all", n=n).items
    if without := [item.id for item in items if not item.documents]:
        raise SettingsError(f"every question must have a document, got none for {without[0]} in {data}; leave it out")
    texts = [tuple(document.text for document in item.documents) for item in items]
    return [Sample(own, item.question, item.answers[0]) for own, item in zip(texts, items, strict=True)]


def _is_own(data: str, format: str | None) -> bool:
    """Whether it is a file in your own format, which has no contexts."""
    if format is not None or (is_hub_id(data) and not Path(data).is_file()):
        return format == OWN
    first = next(entries(data), None)
    return first is not None and recognised(first) == OWN
