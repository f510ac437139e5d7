"""Train MAC end to end on the answers' cross-entropy (arXiv 2403.04317). The model stays as it is.

The bank of a step has all its documents, and each question is answered from that bank. Backpropagation dropout: with
probability `stop_gradient` a document is in the bank without gradients, which saves their memory and keeps the bank
whole. A run is determined by its settings and samples; after an interruption it continues with the same result.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memograft.errors import SettingsError
from memograft.memory.base import Model
from memograft.memory.fit import Progress, Schedule, fit, frozen
from memograft.memory.gist import folder as gist_folder
from memograft.memory.gist.compress import GistWeights, check_model, compressed, in_front
from memograft.memory.gist.data import Asked, Batch, Batches, Sample, digest
from memograft.memory.gist.views import IGNORED, logits_behind, right, targets, with_opening
from memograft.memory.mac import folder as mac_folder
from memograft.memory.mac.networks import Layers, hierarchical
from memograft.memory.mac.weights import MacWeights, fresh, prefix
from memograft.storage.disk import JsonObject

__all__ = ["MacTraining", "answer_logits", "evaluated", "loss_of", "prefixes", "train"]

_WAYS = ("bank", "own", "none")
_GROUPS = (4, 8, 16)
_NOISE = 1e-9  # keys and values of the first layer depend on no document, and vary less than this


@dataclass(frozen=True)
class MacTraining:
    """Settings of a run; with seed and samples they determine the result.

    Attributes:
        tokens: T, learned tokens for each document.
        window: W, tokens of a document or a question at most; longer documents have several modulations.
        steps: optimiser steps.
        groups: documents (with their questions) in a step, which are its bank; samples with the same documents are one.
        questions: of a group in a step, at most.
        rank: of the LoRA.
        blocks: of the aggregation network.
        learning_rate: of AdamW, at its highest.
        warmup: share of the steps in which it rises; it falls linearly to zero after them.
        stop_gradient: share of the documents without gradients.
        grouped: share of the passes that aggregate 4, 8 or 16 modulations at a time (`hierarchical`).
        shown: share of the questions with a page in the prompt too, in half of the cases that of another question.
        imitate: weight of the squared distance of a question's keys and values from those of its document's gist, in
            units of their variance. Needs a gist to start with. The answers' loss alone says little about which
            document to choose, and what to keep of it.
        point: weight of the negative logarithm of the attention that a question's own documents get, in nats.
        alone: share of the questions that see their own documents only, and not the whole bank. These teach what a
            modulation must hold, before it matters which one is chosen.
        on_documents: the LoRA also acts on the tokens of documents and questions while they are encoded.
        accumulate: passes of a step, each with a bank of its own.
        seed: of initial weights and batches.
    """

    tokens: int = 12
    window: int = 256
    steps: int = 1000
    groups: int = 32
    questions: int = 2
    rank: int = 32
    blocks: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.03
    stop_gradient: float = 0.0
    alone: float = 0.5
    grouped: float = 0.0
    shown: float = 0.0
    imitate: float = 0.0
    point: float = 0.0
    on_documents: bool = False
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "window", "steps", "groups", "questions", "rank", "blocks", "accumulate"):
            if getattr(self, name) < 1:
                raise SettingsError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "stop_gradient", "alone", "grouped", "shown"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}")
        for name in ("imitate", "point"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise SettingsError(f"`learning_rate` must be more than 0, got {self.learning_rate}")


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
    trained MAC to begin with, or a gist: its LoRA and its tokens, as many as there are, already hold documents.

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
            seed=settings.seed,
            on_documents=settings.on_documents,
        )
        parameters = weights.named
        teacher: GistWeights | None = None
        if start is not None:
            stated["start"], teacher = _begin_with(start, weights, model)
        if teacher is not None:
            _center(model, weights, teacher, batches.of_step(0, settings.groups)[0])
        if settings.imitate and teacher is None:
            raise SettingsError("`imitate` needs a gist, got none; start with one, of as many tokens")

        def gradients(step: int) -> tuple[float, int]:
            return _step(
                model,
                weights,
                batches.of_step(step, settings.groups, settings.accumulate),
                settings,
                teacher,
                random.Random(f"{settings.seed}-{step}-drawn"),
            )

        def write(state: Progress) -> None:
            made = {**stated, "steps_done": state.step, "tokens_seen": state.tokens}
            mac_folder.write(folder, weights, backbone, model.fingerprint, made)

        state = fit(
            parameters,
            gradients,
            Schedule(settings.steps, settings.learning_rate, settings.warmup),
            folder,
            stated,
            scored=(lambda: evaluated(model, weights, held_out)) if held_out else None,
            write=write,
            every=every,
            stop_at=stop_at,
            progress=progress,
        )
    return weights, state


def loss_of(
    model: Model,
    weights: MacWeights,
    batch: Batch,
    learns: Sequence[bool],
    alone: Sequence[bool] = (),
    imitate: float = 0.0,
    point: float = 0.0,
    teacher: GistWeights | None = None,
    group: int | None = None,
    shown: Mapping[int, int] | None = None,
) -> Tensor:
    """Summed cross-entropy of a batch's answers in nats, and `imitate` and `point` for each of their tokens.

    `learns` says which documents have gradients, and `alone` which questions see only their own; if empty, none does.
    With a `group`, no question is alone, and none points. `shown` has the questions that have a page in the prompt too,
    with the question that it belongs to.
    """
    bank = _bank(model, weights, batch.documents, learns)
    seen = [row.gists if own else () for row, own in zip(batch.asked, alone, strict=True)] if alone else []
    shares: list[Tensor] = []
    layers = prefixes(model, weights, batch.asked, bank, seen, shares if point and group is None else None, group)
    goal = targets(batch.asked, model.backbone.device)
    logits = answer_logits(model, weights, batch, layers, shown)
    loss = cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum")
    counts = (goal != IGNORED).sum(1)
    if imitate and teacher is not None:
        loss = loss + imitate * (_distances(model, batch, layers, teacher) * counts).sum()
    if shares:
        own = torch.tensor([[float(n in row.gists) for n in range(len(bank))] for row in batch.asked])
        mean = torch.stack(shares).mean(0).view(len(own), len(bank), -1).sum(-1)  # (B, K)
        loss = loss - point * ((mean * own.to(mean)).sum(1).clamp_min(1e-9).log() * counts).sum()
    return loss


def prefixes(
    model: Model,
    weights: MacWeights,
    rows: Sequence[Asked],
    bank: Tensor,
    seen: Sequence[Sequence[int]] = (),
    shares: list[Tensor] | None = None,
    group: int | None = None,
) -> Layers:
    """Keys and values of each layer (B, H, T, head dimension), for questions that are answered from a bank (K, T, D).

    `seen` are the numbers of the modulations that each question attends to; if they are empty, to all. `shares` as in
    `Networks.aggregate`, `group` as in `hierarchical`.
    """
    networks = weights.networks
    states = weights.questions(model.backbone, [row.prompt[-weights.window :] for row in rows], model.pad_id)
    if group is not None:
        return networks.modulate(hierarchical(networks, states, bank, group))
    mask: Tensor | None = None
    if any(seen):
        allowed = torch.tensor([[not own or n in own for n in range(len(bank))] for own in seen])
        mask = allowed.repeat_interleave(weights.tokens, 1).to(bank.device)
    return networks.modulate(networks.aggregate(states, bank.flatten(0, 1), mask, shares))


def answer_logits(
    model: Model, weights: MacWeights, batch: Batch, layers: Layers, shown: Mapping[int, int] | None = None
) -> Tensor:
    """(B, n, V) logits at the places of `targets`, behind the opening and each question's keys and values."""
    backbone, rows = model.backbone, batch.asked
    front = in_front(backbone, batch.opening, weights.window)
    seen = torch.ones(len(rows), weights.tokens, dtype=torch.long)
    texts, spared = [], batch.opening.spared
    for n, row in enumerate(rows):
        page = rows[shown[n]] if shown is not None and n in shown else row
        begins = page.full[:spared] == row.prompt[:spared]  # not if the template puts documents in front of messages
        in_prompt = shown is not None and n in shown and begins
        prompt = page.full[: page.page] + row.full[row.page :] if in_prompt else row.prompt
        texts.append(prompt[spared:] + row.answer[:-1])
    behind = with_opening(backbone, front, prefix(backbone, layers).layers, seen)
    return logits_behind(backbone, texts, model.pad_id, max(len(r.answer) for r in rows), *behind, weights.end)


def _distances(model: Model, batch: Batch, layers: Layers, teacher: GistWeights) -> Tensor:
    """(B,) squared distance of keys and values from those of the document's gist, relative to their variance.

    It is 0 for questions about several documents.
    """
    with torch.no_grad():
        gists = compressed(model.backbone, teacher, batch.documents, model.pad_id)
    index = torch.tensor([row.gists[0] for row in batch.asked])
    total, count = torch.zeros(len(index), device=model.backbone.device), 0
    for own, others in zip(layers, gists.layers, strict=True):
        for mine, its in zip(own, others, strict=True):
            variance = its.float().var(0, correction=0).mean()
            if float(variance) > _NOISE * float(its.float().square().mean()):
                apart = (mine - its[index.to(its.device)].float()).square().mean((1, 2, 3)) / variance
                total, count = total + apart.to(total.device), count + 1
    single = torch.tensor([len(row.gists) == 1 for row in batch.asked], device=total.device)
    return total * single / max(1, count)


@torch.no_grad()
def evaluated(model: Model, weights: MacWeights, samples: Sequence[Sample], at_once: int = 64) -> dict[str, float]:
    """The share of samples that are answered exactly, each token given the right ones before it.

    "bank": from one bank of all samples' documents; "own": from a bank of its own documents only; "none": without a
    memory. Also `<way>_loss`, the mean cross-entropy of the answers' tokens in nats.
    """
    batches = Batches(samples, model.prompts, weights.window, 1, 1, 0).all(at_once)
    banks = [_bank(model, weights, batch.documents, [False] * len(batch.documents)) for batch in batches]
    everything = torch.cat(banks)
    counts, losses, tokens = dict.fromkeys(_WAYS, 0), dict.fromkeys(_WAYS, 0.0), 0
    for batch, bank in zip(batches, banks, strict=True):
        goal = targets(batch.asked, model.backbone.device)
        tokens += int((goal != IGNORED).sum())
        count = goal.shape[1]
        for way in _WAYS:
            if way == "none":
                texts = [row.prompt + row.answer[:-1] for row in batch.asked]
                logits = logits_behind(model.backbone, texts, model.pad_id, count)
            else:
                of, seen = (everything, ()) if way == "bank" else (bank, [row.gists for row in batch.asked])
                logits = answer_logits(model, weights, batch, prefixes(model, weights, batch.asked, of, seen))
            counts[way] += right(logits, goal)
            losses[way] += cross_entropy(logits.flatten(0, 1), goal.flatten(), reduction="sum").item()
    shares: dict[str, float] = {way: count / len(samples) for way, count in counts.items()}
    return shares | {f"{way}_loss": round(loss / tokens, 4) for way, loss in losses.items()}


def _bank(model: Model, weights: MacWeights, texts: Sequence[Sequence[int]], learns: Sequence[bool]) -> Tensor:
    """phi (K, T, D) of documents, those that do not learn without gradients."""
    bank = torch.empty(len(texts), weights.tokens, model.backbone.width, device=model.backbone.device)
    for wanted in (False, True):
        chosen = [n for n, learn in enumerate(learns) if learn == wanted]
        if chosen:
            with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
                made = weights.documents(model.backbone, [texts[n] for n in chosen], model.pad_id)
            bank = bank.index_copy(0, torch.tensor(chosen, device=bank.device), made)
    return bank


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
        learns = [rng.random() >= settings.stop_gradient for _ in batch.documents]
        alone = [rng.random() < settings.alone for _ in batch.asked]
        group = rng.choice(_GROUPS) if rng.random() < settings.grouped else None
        count = len(batch.asked)
        shown = {n: rng.choice((n, rng.randrange(count))) for n in range(count) if rng.random() < settings.shown}
        loss = loss_of(
            model,
            weights,
            batch,
            learns,
            alone if group is None else (),
            settings.imitate,
            settings.point,
            teacher,
            group,
            shown,
        )
        loss = loss / weight
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        tokens += sum(len(ids) + weights.tokens for ids in batch.documents)
        tokens += sum(2 * len(row.prompt) + weights.tokens + len(row.answer) for row in batch.asked)
    return total, tokens


@torch.no_grad()
def _center(model: Model, weights: MacWeights, teacher: GistWeights, batch: Batch) -> None:
    """Let the prefix be the mean of some documents' gists, so that only the differences must be learned."""
    made = compressed(model.backbone, teacher, batch.documents, model.pad_id)
    flat = [t.float().mean(0).transpose(0, 1).flatten(1) for pair in made.layers for t in pair]
    weights.networks.prefix.copy_(torch.cat([t.to(model.backbone.device) for t in flat], 1))


@torch.no_grad()
def _begin_with(start: Path, weights: MacWeights, model: Model) -> tuple[str, GistWeights | None]:
    """Copy the weights of a MAC, or LoRA and tokens of a gist. Returns its id, and the gist if it can be imitated."""
    is_mac = (start / "mac.json").exists()
    found: mac_folder.MacAbout | gist_folder.GistAbout = (mac_folder if is_mac else gist_folder).about(start)
    if found.fingerprint != model.fingerprint:
        raise SettingsError(
            f"`start` must be of this model (fingerprint {model.fingerprint}), got one of {found.fingerprint} in "
            f"{start}; leave it out"
        )
    gist: GistWeights | None = None
    if is_mac:
        known = mac_folder.read(start, model.backbone).named
    else:
        gist = gist_folder.read(start, model.backbone)
        known = gist.adapter.named | dict.fromkeys(("document_tokens", "question_tokens"), gist.embeddings)
    for name, parameter in weights.named.items():
        if name in known and name in ("document_tokens", "question_tokens"):
            count = min(len(known[name]), len(parameter))
            parameter[:count] = known[name][:count]
        elif name in known and known[name].shape == parameter.shape:
            parameter.copy_(known[name])
        elif name in known or is_mac:
            raise SettingsError(
                f"`start` must have the same `rank`, `tokens` and `blocks`, and {start} has others at {name}; set its "
                "values"
            )
    same = gist is not None and (gist.tokens, gist.window) == (weights.tokens, weights.window)
    return found.id, gist if same else None
