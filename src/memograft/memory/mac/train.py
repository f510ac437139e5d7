"""Train MAC end to end on the answers' cross-entropy (arXiv 2403.04317). The model stays as it is.

The bank of a step has all its documents, and each question is answered from that bank. Backpropagation dropout: with
probability `stop_gradient` a document is in the bank without gradients, which saves their memory and keeps the bank
whole. A run is determined by its settings and samples; after an interruption it continues with the same result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from memograft.errors import SettingsError
from memograft.memory.base import Model
from memograft.memory.fit import Progress, Training, fit, frozen
from memograft.memory.gist.compress import GistWeights, check_model
from memograft.memory.gist.data import Batch, Batches, Sample, digest
from memograft.memory.gist.views import IGNORED, logits_behind, right, targets
from memograft.memory.mac import folder as mac_folder
from memograft.memory.mac.loss import Drawn, answer_logits, bank_of, found_in, loss_of
from memograft.memory.mac.start import begin_with, fit_to_gist
from memograft.memory.mac.weights import MODULATIONS, MacWeights, fresh
from memograft.storage.disk import JsonObject

__all__ = ["MacTraining", "evaluated", "train"]

_WAYS = ("bank", "own", "none")
_AT_ONCE = 32  # groups of documents that are encoded at a time, to fit networks to a gist


@dataclass(frozen=True)
class MacTraining(Training):
    """Settings of a run; see also `Training`. The documents of a pass are its bank.

    Attributes:
        tokens: T, learned tokens for each document.
        modulation: what is found becomes "prefix", keys and values in front of the prompt, or "lora", a LoRA of rank T
            on the last FFN.
        blocks: of the aggregation network.
        heads: of its attention. With one, all numbers of a state say together which document is meant; of eight, each
            tells few documents apart.
        stop_gradient: share of the documents without gradients.
        others: documents in the bank of a pass about which nothing is asked, encoded without gradients: a question must
            find its own among more. (Modulations of earlier steps would be free, but a bank learns to move away from
            them, and forgets what it holds.)
        shown: share of the questions with a page in the prompt too, in half of the cases that of another question.
        imitate: weight of the squared distance of a question's keys and values from those of its document's gist, in
            units of their variance. Needs a gist to start with. The answers' loss alone says little about which
            document to choose, and what to keep of it.
        point: weight of the negative logarithm of the attention that a question's own documents get, in nats.
        alone: share of the questions that see their own documents only, and not the whole bank. These teach what a
            modulation must hold, before it matters which one is chosen.
        fitted: groups of documents by which the networks are fitted to a gist to start with.
    """

    questions: int = 2
    tokens: int = 12
    modulation: str = "prefix"
    blocks: int = 4
    heads: int = 1
    stop_gradient: float = 0.0
    alone: float = 0.5
    others: int = 0
    shown: float = 0.0
    imitate: float = 0.0
    point: float = 0.0
    fitted: int = 512

    def __post_init__(self) -> None:
        if self.modulation not in MODULATIONS:
            raise SettingsError(f"`modulation` must be one of {', '.join(MODULATIONS)}, got {self.modulation!r}")
        if self.modulation == "lora" and self.imitate:
            raise SettingsError(
                f"`imitate` is for keys and values, and a LoRA has none, got {self.imitate}; set it to 0"
            )
        shares = ("stop_gradient", "alone", "shown")
        self.check(
            counts=("tokens", "blocks", "heads", "fitted"), shares=shares, weights=("others", "imitate", "point")
        )


def train(
    model: Model,
    samples: Sequence[Sample],
    settings: MacTraining,
    folder: Path,
    *,
    held_out: Sequence[Sample] = (),
    start: Path | None = None,
    every: int = 100,
    stop_at: int | None = None,
    progress: bool = True,
) -> tuple[MacWeights, Progress]:
    """Train to the end, or to step `stop_at`, and return the weights.

    Every `every` steps, `held_out` samples are answered from one bank of all their documents, and the weights are
    written into `folder`, with a checkpoint. A later call with the same settings continues from there. `start` is a
    trained MAC to begin with, or a gist: its LoRA and its tokens, as many as there are, already hold documents, and the
    networks are fitted to give its keys and values, if it has as many tokens and the same window.

    Raises:
        SettingsError: no samples, the checkpoint has other settings, samples or another model, or `start` does not fit.
        MemoryFormatError: the checkpoint or `start` is damaged.
        UnsupportedModelError: see `check_model`.
    """
    backbone = model.backbone
    check_model(backbone)
    stated: JsonObject = {"fingerprint": model.fingerprint, "samples": digest(samples), **asdict(settings)}
    batches = Batches(samples, model.prompts, settings.window, 1, settings.questions, settings.seed)
    with frozen(backbone):
        weights = fresh(
            backbone,
            batches.of_step(0, 1)[0].documents[0],
            tokens=settings.tokens,
            window=settings.window,
            rank=settings.rank,
            blocks=settings.blocks,
            heads=settings.heads,
            seed=settings.seed,
            on_documents=settings.on_documents,
            modulation=settings.modulation,
        )
        parameters = weights.named
        teacher: GistWeights | None = None
        if start is not None:
            stated["start"], teacher = begin_with(start, weights, model)
        if settings.imitate and teacher is None:
            raise SettingsError("`imitate` needs a gist, got none; start with one, of as many tokens")

        def gradients(step: int) -> tuple[float, int]:
            return _step(
                model,
                weights,
                batches.of_step(step, settings.groups, settings.accumulate, settings.others),
                settings,
                teacher,
                random.Random(f"{settings.seed}-{step}-drawn"),
            )

        def begin() -> None:
            if teacher is not None and settings.modulation == "prefix":
                passes = -(-min(settings.fitted, len(batches)) // _AT_ONCE)
                each = batches.once(settings.fitted, _AT_ONCE)
                fit_to_gist(model, weights, teacher, tqdm(each, "fitting", passes, disable=not progress))

        def write(state: Progress) -> None:
            made = {**stated, "steps_done": state.step, "tokens_seen": state.tokens}
            mac_folder.write(folder, weights, backbone, model.fingerprint, made)

        state = fit(
            parameters,
            gradients,
            settings,
            folder,
            stated,
            scored=(lambda: evaluated(model, weights, held_out)) if held_out else None,
            begin=begin,
            write=write,
            every=every,
            stop_at=stop_at,
            progress=progress,
        )
    return weights, state


@torch.no_grad()
def evaluated(model: Model, weights: MacWeights, samples: Sequence[Sample], at_once: int = 64) -> dict[str, float]:
    """The share of samples that are answered exactly, each token given the right ones before it.

    "bank": from one bank of all samples' documents; "own": from a bank of its own documents only; "none": without a
    memory. Also `<way>_loss`, the mean cross-entropy of the answers' tokens in nats.
    """
    batches = Batches(samples, model.prompts, weights.window, 1, 1, 0).all(at_once)
    banks = [bank_of(model, weights, batch.documents, [False] * len(batch.documents)) for batch in batches]
    everything = torch.cat(banks)
    counts, losses, tokens = dict.fromkeys(_WAYS, 0), dict.fromkeys(_WAYS, 0.0), 0
    for batch, bank in zip(batches, banks, strict=True):
        goal = targets(batch.asked, model.backbone.device)
        tokens += int((goal != IGNORED).sum())
        for way in _WAYS:
            if way == "none":
                texts = [row.prompt + row.answer[:-1] for row in batch.asked]
                logits = logits_behind(model.backbone, texts, model.pad_id, goal)
            else:
                own = torch.tensor([[n in row.gists for n in range(len(bank))] for row in batch.asked])
                of, seen = (everything, None) if way == "bank" else (bank, own.to(bank.device))
                logits = answer_logits(model, weights, batch, found_in(model, weights, batch.asked, of, seen))
            counts[way] += right(logits, goal)
            losses[way] += cross_entropy(logits, goal[goal != IGNORED], reduction="sum").item()
    shares: dict[str, float] = {way: count / len(samples) for way, count in counts.items()}
    return shares | {f"{way}_loss": round(loss / tokens, 4) for way, loss in losses.items()}


def _step(
    model: Model,
    weights: MacWeights,
    batches: Sequence[Batch],
    settings: MacTraining,
    teacher: GistWeights | None,
    rng: random.Random,
) -> tuple[float, int]:
    """Add up the gradients of a step. Returns its loss and how many tokens it read."""
    weight = sum(len(row.answer) for batch in batches for row in batch.asked)
    total, tokens = 0.0, 0
    for batch in batches:
        own = {n for row in batch.asked for n in row.gists}
        learns = [n in own and rng.random() >= settings.stop_gradient for n in range(len(batch.documents))]
        bank, drawn = bank_of(model, weights, batch.documents, learns), _drawn(settings, batch, rng)
        loss = loss_of(
            model, weights, batch, bank, drawn, imitate=settings.imitate, point=settings.point, teacher=teacher
        )
        loss = loss / weight
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        tokens += sum(len(ids) + weights.tokens for ids in batch.documents)
        tokens += sum(2 * len(row.prompt) + weights.tokens + len(row.answer) for row in batch.asked)
    return total, tokens


def _drawn(settings: MacTraining, batch: Batch, rng: random.Random) -> Drawn:
    """What is drawn for a pass."""
    count = len(batch.asked)
    alone = [rng.random() < settings.alone for _ in batch.asked]
    shown = {n: rng.choice((n, rng.randrange(count))) for n in range(count) if rng.random() < settings.shown}
    return Drawn(alone, shown)
