"""Samples of gist training, and the batches that are made of them: each step's batch depends on seed and step only."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memograft.documents import Document
from memograft.errors import SettingsError
from memograft.memory.gist.compress import Opening, opening, parts
from memograft.prompt.builder import PromptBuilder
from memograft.prompt.continuation import continuation

__all__ = ["Asked", "Batch", "Batches", "Sample", "digest"]


@dataclass(frozen=True)
class Sample:
    """A question about documents.

    Attributes:
        documents: their texts; each has a gist of its own (several, if it is long).
        question: what the user asks.
        answer: what the model is trained to say.
    """

    documents: tuple[str, ...]
    question: str
    answer: str


def digest(samples: Sequence[Sample]) -> str:
    """Hash of samples and their order, 16 hex digits."""
    hashed = hashlib.sha256()
    for sample in samples:
        hashed.update(json.dumps([sample.documents, sample.question, sample.answer]).encode())
    return hashed.hexdigest()[:16]


@dataclass(frozen=True)
class Asked:
    """A question of a batch.

    Attributes:
        prompt: its tokens, without documents.
        full: the tokens of the same prompt with the sample's documents, for the positive control.
        answer: the tokens of the answer, with the token that ends the turn.
        gists: the numbers of the gists that it sees; those of its own documents, and of others that distract.
        asked: how many tokens at the end of `prompt` and `full` are the question and what the template puts behind it.
        page: how many tokens `full` has up to the end of the documents.
    """

    prompt: tuple[int, ...]
    full: tuple[int, ...]
    answer: tuple[int, ...]
    gists: tuple[int, ...]
    asked: int = 0
    page: int = 0


@dataclass(frozen=True)
class Batch:
    """Documents that are compressed in one pass, and questions that are asked in one pass over their gists.

    Attributes:
        documents: their tokens; those about which nothing is asked come last.
        asked: the questions.
        opening: what stands in front of the gists, the same for all questions.
    """

    documents: tuple[tuple[int, ...], ...]
    asked: tuple[Asked, ...]
    opening: Opening


class Batches:
    """Batches of `groups` groups of documents each. Samples with the same documents are a group.

    Args:
        samples: at least one.
        prompts: builds token ids.
        window: W, see `compress`.
        most: documents that a question sees at most; others of the batch are added to its own at random.
        questions: of a group that are asked in a step, at most.
        seed: of order, questions and distractors.

    Raises:
        SettingsError: there are no samples.
    """

    def __init__(
        self, samples: Sequence[Sample], prompts: PromptBuilder, window: int, most: int, questions: int, seed: int
    ) -> None:
        if not samples:
            raise SettingsError("training needs at least one sample, got none; check the file and its split")
        groups: dict[tuple[str, ...], list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.documents, []).append(sample)
        self._groups = list(groups.values())
        self._prompts, self._window, self._most, self._questions = prompts, window, most, questions
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])  # of an epoch

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._groups)

    def of_step(self, step: int, groups: int, passes: int = 1, others: int = 0) -> list[Batch]:
        """The batch of a step in `passes` parts, each with `groups` / `passes` of the groups, of similar length.

        Each part also has the documents of `others` groups about which nothing is asked.
        """
        rng = random.Random(f"{self._seed}-{step}")
        chosen = [self._groups[self._place(n)] for n in range(step * groups, (step + 1) * groups)]
        chosen.sort(key=lambda group: sum(map(len, group[0].documents)))  # less padding
        size = -(-groups // passes)
        return [
            self.batch(chosen[n : n + size], rng, rng.sample(self._groups, min(others, len(self._groups))))
            for n in range(0, groups, size)
        ]

    def once(self, count: int, groups: int) -> Iterator[Batch]:
        """The first `count` groups of an epoch, or all if there are fewer, each once, with questions as in a step."""
        chosen = [self._groups[self._place(n)] for n in range(min(count, len(self._groups)))]
        chosen.sort(key=lambda group: sum(map(len, group[0].documents)))  # less padding
        for n in range(0, len(chosen), groups):
            yield self.batch(chosen[n : n + groups], random.Random(f"{self._seed}-once-{n}"))

    def all(self, groups: int) -> list[Batch]:
        """All samples, once each, without distractors."""
        return [self.batch(self._groups[n : n + groups], None) for n in range(0, len(self._groups), groups)]

    def batch(
        self,
        groups: Sequence[Sequence[Sample]],
        rng: random.Random | None,
        unasked: Sequence[Sequence[Sample]] = (),
    ) -> Batch:
        """One batch of these groups, and the documents of `unasked`.

        Without `rng`, all questions are asked, of their own documents alone.
        """
        documents: list[tuple[int, ...]] = []
        places: dict[str, tuple[int, ...]] = {}
        for text in dict.fromkeys(text for group in groups for text in group[0].documents):
            own = parts(self._prompts, Document(text), self._window)
            places[text] = tuple(range(len(documents), len(documents) + len(own)))
            documents += own
        for text in dict.fromkeys(text for group in unasked for text in group[0].documents):
            documents += parts(self._prompts, Document(text), self._window) if text not in places else ()
        asked, openings = list[Asked](), list[Opening]()
        for group in groups:
            own_samples = list(group)
            if rng is not None:
                own_samples = rng.sample(own_samples, min(self._questions, len(group)))
            for sample in own_samples:
                texts = list(sample.documents)
                if rng is not None:
                    others = [text for text in places if text not in sample.documents]
                    more = rng.randint(0, max(0, self._most - len(texts)))
                    texts += rng.sample(others, min(more, len(others)))
                    rng.shuffle(texts)
                own_asked, own_opening = self._asked(sample, tuple(n for text in texts for n in places[text]))
                asked.append(own_asked)
                openings.append(own_opening)
        return Batch(tuple(documents), tuple(asked), min(openings, key=lambda own: own.spared))

    def _asked(self, sample: Sample, gists: tuple[int, ...]) -> tuple[Asked, Opening]:
        messages = [{"role": "user", "content": sample.question}]
        prompt, answer = continuation(self._prompts, messages, (), sample.answer)
        front = opening(self._prompts, prompt)
        full = self._prompts.build(messages, [Document(text) for text in sample.documents])
        stop = self._prompts.turn_end
        page = max(end for _, end in full.spans)
        # Nothing in the question's own pass predicts its first token.
        asked = _alike(prompt.ids[max(front.spared + 1, prompt.question[0]) :], full.ids[page + 1 :])
        answer = (*answer, *(() if stop is None else (stop,)))
        return Asked(prompt.ids, full.ids, answer, gists, asked, page), front

    def _place(self, n: int) -> int:
        """The group in place `n` of an endless sequence of epochs, each in an order of its own."""
        epoch, place = divmod(n, len(self._groups))
        if self._order[0] != epoch:
            order = list(range(len(self._groups)))
            random.Random(f"{self._seed}-epoch-{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the end of both are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((n for n, (own, its) in enumerate(pairs) if own != its), min(len(one), len(other)))
