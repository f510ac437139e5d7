"""Train gist tokens: their embeddings, and a LoRA that acts on them. The model stays as it is.

The loss is the cross-entropy of the answers behind the gists, over many documents at once (arXiv 2304.08467, eq. 2),
and with `distill` a KL divergence from the model's own distribution with the documents in view. A run is determined by
its settings and samples; after an interruption it continues from its last checkpoint with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from memograft.errors import SettingsError
from memograft.memory.base import Model
from memograft.memory.fit import Progress, Training, fit, frozen
from memograft.memory.gist import folder as gist_folder
from memograft.memory.gist.compress import GistWeights, check_model, compressed, fresh_lora, used_by
from memograft.memory.gist.data import Batch, Batches, Sample, digest
from memograft.memory.gist.refine import known_questions
from memograft.memory.gist.views import IGNORED, VIEWS, answer_logits, right, targets
from memograft.model.backbone import Backbone
from memograft.storage.disk import JsonObject

__all__ = ["GistTraining", "evaluated", "fresh", "loss_of", "train"]


@dataclass(frozen=True)
class GistTraining(Training):
    """Settings of a run; see also `Training`.

    Attributes:
        tokens: k, gist tokens for each document.
        documents: that a question sees at most, with others of the step.
        distill: weight of the KL divergence from the model with the documents in view; 1 - `distill` is that of the
            cross-entropy.
        ask: weight of a question's token (and of the template's behind it) in the loss, against 1 of an answer's. There
            are more of them, and how likely a question is behind a gist tells what the gist holds.
    """

    tokens: int = 10
    documents: int = 3
    distill: float = 0.0
    ask: float = 0.0

    def __post_init__(self) -> None:
        self.check(counts=("tokens", "documents"), shares=("distill", "ask"))


def train(
    model: Model,
    samples: Sequence[Sample],
    settings: GistTraining,
    folder: Path,
    *,
    held_out: Sequence[Sample] = (),
    start: Path | None = None,
    every: int = 100,
    stop_at: int | None = None,
    progress: bool = True,
) -> tuple[GistWeights, Progress]:
    """Train to the end, or to step `stop_at`, and return the weights.

    Every `every` steps, `held_out` samples are asked in all views, and the gist is written into `folder`, with a
    checkpoint. A later call with the same settings continues from there. `start` is a trained gist to begin with.

    Raises:
        SettingsError: no samples, the checkpoint has other settings, samples or another model, or `start` does not fit.
        MemoryFormatError: the checkpoint or `start` is damaged.
        UnsupportedModelError: see `check_model`.
    """
    backbone = model.backbone
    check_model(backbone)
    stated: JsonObject = {"fingerprint": model.fingerprint, "samples": digest(samples), **asdict(settings)}
    if start is not None:
        stated["start"] = gist_folder.about(start).id
    batches = Batches(samples, model.prompts, settings.window, settings.documents, settings.questions, settings.seed)
    with frozen(backbone):
        weights = fresh(backbone, settings, batches.of_step(0, 1)[0], model.pad_id)
        parameters = weights.named
        if start is not None:
            _begin_with(start, parameters, model)

        def gradients(step: int) -> tuple[float, int]:
            return _step(model, weights, batches.of_step(step, settings.groups, settings.accumulate), settings)

        asked = known_questions(model, samples, settings.window, settings.seed, progress=progress)

        def write(state: Progress) -> None:
            made = {**stated, "steps_done": state.step, "tokens_seen": state.tokens}
            gist_folder.write(folder, weights, backbone, model.fingerprint, made, asked)

        state = fit(
            parameters,
            gradients,
            settings,
            folder,
            stated,
            scored=(lambda: evaluated(model, weights, held_out)) if held_out else None,
            write=write,
            every=every,
            stop_at=stop_at,
            progress=progress,
        )
    return weights, state


def fresh(backbone: Backbone, settings: GistTraining, batch: Batch, pad_id: int) -> GistWeights:
    """Untrained weights: embeddings of random tokens, and a LoRA that changes nothing yet.

    It has only the maps on which a gist's keys and values depend, so not the last layer's output.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        ids = torch.randint(len(backbone.model.get_input_embeddings().weight), (settings.tokens,), generator=generator)
        embeddings = backbone.model.get_input_embeddings()(ids.to(backbone.device)).float().clone()
    adapter = fresh_lora(backbone, settings.rank, generator)
    weights = GistWeights(embeddings.requires_grad_(), adapter, settings.window, settings.on_documents)
    with torch.enable_grad():
        made = compressed(backbone, weights, batch.documents[:1], pad_id)
        total = torch.stack([tensor.float().sum() for pair in made.layers for tensor in pair]).sum()
    return replace(weights, adapter=used_by(total, adapter))


@torch.no_grad()
def _begin_with(start: Path, parameters: Mapping[str, Tensor], model: Model) -> None:
    """Copy the weights of a gist. If it has fewer tokens, the others keep their own embeddings; if more, its first."""
    about = gist_folder.about(start)
    if about.fingerprint != model.fingerprint:
        raise SettingsError(
            f"`start` must be a gist of this model (fingerprint {model.fingerprint}), got one of {about.fingerprint} "
            f"in {start}; leave it out"
        )
    known = gist_folder.read(start, model.backbone).named
    for name, parameter in parameters.items():
        if name == "embeddings":
            count = min(len(known[name]), len(parameter))
            parameter[:count] = known[name][:count]
        elif name in known and known[name].shape == parameter.shape:
            parameter.copy_(known[name])
        else:
            raise SettingsError(f"`start` must have the same `rank`, got another one in {start}; set its rank")


@torch.no_grad()
def evaluated(model: Model, weights: GistWeights, samples: Sequence[Sample], groups: int = 32) -> dict[str, float]:
    """The share of samples that each view answers exactly, each token given the right ones before it.

    Also `<view>_loss`, the mean cross-entropy of the answers' tokens in nats, for models whose wording is another.
    """
    batches = Batches(samples, model.prompts, weights.window, 1, 1, 0)
    counts, losses, tokens = dict.fromkeys(VIEWS, 0), dict.fromkeys(VIEWS, 0.0), 0
    for batch in batches.all(groups):
        gists = compressed(model.backbone, weights, batch.documents, model.pad_id)
        for view in VIEWS:
            logits = answer_logits(model.backbone, batch, view, model.pad_id, gists, weights.end)
            goal = targets(batch.asked, logits.device)
            counts[view] += right(logits, goal)
            losses[view] += cross_entropy(logits, goal[goal != IGNORED], reduction="sum").item()
        tokens += sum(len(row.answer) for row in batch.asked)
    shares: dict[str, float] = {view: count / len(samples) for view, count in counts.items()}
    return shares | {f"{view}_loss": round(loss / tokens, 4) for view, loss in losses.items()}


def _step(model: Model, weights: GistWeights, batches: Sequence[Batch], settings: GistTraining) -> tuple[float, int]:
    """Add up the gradients of a step. Returns its loss and how many tokens it read."""
    rows = [row for batch in batches for row in batch.asked]
    weight = sum(len(row.answer) + settings.ask * row.asked for row in rows)
    total, tokens = 0.0, 0
    for batch in batches:
        loss = loss_of(model, weights, batch, settings.distill, settings.ask) / weight
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        tokens += sum(len(ids) + weights.tokens for ids in batch.documents)
        tokens += sum(len(row.prompt) + len(row.answer) for row in batch.asked)
    return total, tokens


def loss_of(model: Model, weights: GistWeights, batch: Batch, distill: float = 0.0, ask: float = 0.0) -> Tensor:
    """The loss of a batch: a sum over answer tokens, and `ask` times that over question tokens."""
    backbone, questions = model.backbone, ask > 0
    gists = compressed(backbone, weights, batch.documents, model.pad_id)
    own = answer_logits(backbone, batch, "gist", model.pad_id, gists, weights.end, questions=questions)
    goal, answers = targets(batch.asked, own.device, questions=questions), targets(batch.asked, own.device)
    places = goal != IGNORED
    each = places * ask
    each[:, each.shape[1] - answers.shape[1] :][answers != IGNORED] = 1
    weight, loss = each[places], own.new_zeros(())
    if distill < 1:
        loss = (1 - distill) * (weight @ cross_entropy(own, goal[places], reduction="none"))
    if distill > 0:
        with torch.no_grad():
            full = answer_logits(backbone, batch, "full", model.pad_id, questions=questions).log_softmax(-1)
        apart = kl_div(own.log_softmax(-1), full, log_target=True, reduction="none").sum(-1)
        loss = loss + distill * (weight @ apart)
    return loss
