"""What memorizing costs beside the prefill: SmolLM2 on real pages, and larger shapes with random weights."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from costs.clock import Line, Times, flops, of_ratio, spent, turns
from costs.models import document, random_engine
from memograft import Document, Engine, FastMem, Request, Sampling
from memograft.evaluation.readers.reading import read
from memograft.memory.base import Model, Task, Wanted
from memograft.memory.fastmem.relevance import LEAD, relevances
from memograft.model.kv import Prefill
from memograft.model.prefill import prefill
from memograft.prompt.builder import Prompt

__all__ = ["Memorizing", "growth", "shape", "smollm2"]

ORDINARY_STEPS = 10  # the paper's
NEW_TOKENS = 32
QUESTION = "w1 w2 w3 w4 w5 w6 w7 w8 ?"
# Random weights: every document is judged and accepted, all steps are taken, and nothing is rolled back.
RANDOM = FastMem(relevance=-1, target_kl=None, max_kl=1e9)
Question = tuple[str, tuple[Document, ...]]


class Memorizing:
    """Prefill and memorizing of a batch, as the engine calls them."""

    def __init__(self, model: Model, memory: FastMem, questions: Sequence[Question]) -> None:
        self._model, self._memory = model, memory
        self.prompts: list[Prompt] = [
            model.prompts.build([{"role": "user", "content": question}], documents) for question, documents in questions
        ]
        self._filled: Prefill

    def prefill(self) -> None:
        """Its result is what the other calls start from."""
        self._filled = prefill(self._model.backbone, [p.ids for p in self.prompts], self._model.pad_id)

    def memorize(self) -> None:
        """Relevance, training, and the exact losses before and after."""
        wanted = [Wanted(self._memory, prompt, row) for row, prompt in enumerate(self.prompts)]
        for brought in FastMem.prepare(self._model, wanted, self._filled, Task()):
            assert brought.report is not None

    def judge(self) -> None:
        """Relevance alone."""
        lead = self._model.prompts.continued(LEAD)
        relevances(self._model.backbone, self._filled, range(len(self.prompts)), self.prompts, lead)


def shape(name: str, tokens: int, target: float, repeat: int) -> list[Line]:
    """Memorizing / prefill of one document."""
    with random_engine(name) as engine:
        one = Memorizing(engine._model, RANDOM.resolved(), [(QUESTION, (document(tokens),))])
        times = turns({"prefill": one.prefill, "memorize": one.memorize}, repeat, f"{name}, T {tokens}")
        limit = round(flops(one.memorize) / flops(one.prefill), 3)
    title = f"memorizing / prefill, {name}, T {tokens:,}"
    return [of_ratio(title, times["memorize"], times["prefill"], target=target, flops=limit)]


def growth(name: str, lengths: Sequence[tuple[int, int]], target: float) -> list[Line]:
    """The exponent of memorizing's time over the document's length; `lengths` are (tokens, repetitions)."""
    medians, ends = [], []
    with random_engine(name) as engine:
        for tokens, repeat in lengths:
            one = Memorizing(engine._model, RANDOM.resolved(), [(QUESTION, (document(tokens),))])
            one.prefill()
            if not medians:
                one.memorize()  # warms up
            cpu = [spent(one.memorize).cpu for _ in tqdm(range(repeat), desc=f"{name}, T {tokens}")]
            medians.append((math.log(tokens), math.log(statistics.median(cpu))))
            ends.append((min(cpu), max(cpu)))
    slope = statistics.linear_regression(*zip(*medians, strict=True)).slope
    span = medians[-1][0] - medians[0][0]
    least, largest = (math.log(ends[-1][n] / ends[0][1 - n]) / span for n in (0, 1))
    title = f"exponent of memorizing, {name}, T {lengths[0][0]:,} to {lengths[-1][0]:,}"
    times = min(repeat for _, repeat in lengths)
    spread = sorted((round(least, 3), round(largest, 3)))
    return [Line(title, round(slope, 3), *spread, target=target, repetitions=times)]


def smollm2(data: str, rows: int, repeat: int) -> list[Line]:
    """SmolLM2-135M-Instruct on pages of NQ-SWAP, each repetition on other ones."""
    items = read(data, contexts=["contradicts"], split="test", n=rows * (repeat + 1)).items
    questions: list[Question] = [(item.question, item.documents) for item in items]
    times: dict[str, list[Times]] = {}
    limits: dict[str, float] = {}
    with Engine.from_pretrained("smollm2") as engine:
        memory = FastMem().resolved()
        engine.model.generation_config.min_new_tokens = NEW_TOKENS  # all generate the same number of tokens
        for start in range(0, len(questions), rows):
            batch = questions[start : start + rows]
            many, one = (Memorizing(engine._model, memory, own) for own in (batch, batch[:1]))
            parts: dict[str, Callable[[], object]] = {
                f"{part}, {n}": call
                for n, own in ((rows, many), (1, one))
                for part, call in {"prefill": own.prefill, "relevance": own.judge, "memorize": own.memorize}.items()
            }
            parts["generate"] = lambda one=one: _generate(engine, one.prompts[0].ids)  # type: ignore[misc]
            for name, wanted in (("plain", None), ("memorized", memory)):
                request = Request(batch[0][0], documents=batch[0][1], memory=wanted, sampling=Sampling(NEW_TOKENS))
                parts[f"answer, {name}"] = lambda request=request: engine.answer(request)  # type: ignore[misc]
            parts["ordinary"] = lambda one=one: _ordinary(engine.model, one.prompts[0])  # type: ignore[misc]
            for name, part in parts.items():
                own = spent(part)
                if start:  # the first batch warms up
                    times.setdefault(name, []).append(own)
        for n, own in ((rows, many), (1, one)):
            limits[f"memorize, {n}"] = round(flops(own.memorize) / flops(own.prefill), 3)
    said = "SmolLM2, NQ-SWAP"
    lines = []
    for n in (rows, 1):
        pages, base, target = f"{n} page{'s' if n > 1 else ''}", times[f"prefill, {n}"], {rows: 0.15}.get(n)
        limit = limits[f"memorize, {n}"]
        title = f"memorizing / prefill, {said}, {pages}"
        lines.append(of_ratio(title, times[f"memorize, {n}"], base, target=1.0, flops=limit))
        lines.append(of_ratio(f"relevance / prefill, {said}, {pages}", times[f"relevance, {n}"], base, target=target))
    plain, memorized = times["answer, plain"], times["answer, memorized"]
    answer = f"answer of {NEW_TOKENS} tokens"
    lines.append(of_ratio(f"{answer}, memorized / generate, {said}", memorized, times["generate"], target=1.3))
    lines.append(of_ratio(f"{answer}, plain / generate, {said}", plain, times["generate"]))
    title = f"FastMem through the whole model / memorizing, {said}, 1 page"
    lines.append(of_ratio(title, times["ordinary"], times["memorize, 1"], target=10.0, at_least=True))
    return lines


def _generate(engine: Engine, ids: Sequence[int]) -> None:
    tokens = torch.tensor([list(ids)])
    engine.model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, do_sample=False
    )


def _ordinary(model: Any, prompt: Prompt) -> None:
    """The paper's loop through the whole model, with Hugging Face alone; its weights are put back afterwards."""
    ids, context = torch.tensor([prompt.ids]), torch.tensor(prompt.context)
    ffn = model.model.layers[-1].mlp
    kept = copy.deepcopy(ffn.state_dict())
    trained = list(ffn.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser, base = torch.optim.AdamW(trained, lr=1e-5), None
    for _ in range(ORDINARY_STEPS):
        logp = model(input_ids=ids).logits[:, context - 1].float().log_softmax(-1)
        base = logp.detach() if base is None else base
        kl = torch.nn.functional.kl_div(logp, base, log_target=True, reduction="none").sum(-1).mean()
        loss = torch.nn.functional.nll_loss(logp[0], ids[0, context]) + 0.1 * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    ffn.load_state_dict(kept)
    for parameter in trained:
        parameter.requires_grad_(False)
