"""`Lessons`: worked examples of the tuning split, shown as earlier turns or learned into a datastore.

Examples about the same thing as an asked question are left out of both, and no turn shows a page of the prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING

from memograft.evaluation.items import Item, sets_of
from memograft.evaluation.protocol import protocol_of
from memograft.prompt.builder import render_documents

if TYPE_CHECKING:
    from memograft import Datastore, Engine

__all__ = ["Lessons"]

_LEARNED = 256  # examples of a datastore; more would take longer than answering most sets


class Lessons:
    """Worked examples for a run.

    Args:
        engine: its model builds the datastore.
        examples: items of the tuning split, of any number of sets; may be empty.
        asked: the items of the run.

    Attributes:
        examples: those that are not about the same thing as an asked item.
    """

    def __init__(self, engine: Engine, examples: Sequence[Item], asked: Sequence[Item]) -> None:
        self._engine = engine
        taken = {_about(item) for item in asked}
        self.examples = [example for example in examples if _about(example) not in taken]

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the examples."""
        said = json.dumps([asdict(example) for example in self.examples])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def turns(self, item: Item, count: int) -> list[dict[str, str]]:
        """The first `count` examples about different things, as a user and an assistant message each.

        Examples of the item's own set come first. There are fewer messages if there are too few examples.
        """
        pages = {d.text for d in item.documents}
        fit = [e for e in self.examples if e.task == item.task and not pages & {d.text for d in e.documents}]
        fit.sort(key=lambda example: example.set != item.set)
        first = {_about(example): example for example in reversed(fit)}
        shown = [example for example in fit if first[_about(example)] is example][:count]
        return [message for example in shown for message in _turn(example)]

    @cached_property
    def datastore(self) -> Datastore:
        """A datastore of (documents, question, answer) of the first examples, equally many per set. Built on first use.

        Examples that do not fit the model's window are left out.
        """
        from memograft import Datastore

        sets = sets_of(self.examples)
        some = [e for name in sets for e in [e for e in self.examples if e.set == name][: _LEARNED // len(sets)]]
        learned = [(e.documents, e.question, _answer(e)) for e in some if self._fits(e)]
        return Datastore.build(self._engine, learned, progress=False)

    def close(self) -> None:
        """Delete the datastore."""
        if "datastore" in self.__dict__:
            self.datastore.close()

    def _fits(self, example: Item) -> bool:
        turn = {"role": "user", "content": example.question}
        said = self._engine.tokenizer(_answer(example), add_special_tokens=False)["input_ids"]
        prompt = self._engine.with_model(lambda _, prompts: prompts.build([turn], example.documents))
        return len(prompt.ids) + len(said) + _ENDS <= self._engine.max_length


_ENDS = 8  # tokens that a template may put after an answer


def _about(item: Item) -> str:
    """A key that is equal for items about the same thing."""
    return item.group or item.query or item.question


def _turn(example: Item) -> list[dict[str, str]]:
    texts = [d.text for d in example.documents]
    asked = render_documents(texts, example.question) if texts else example.question
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": _answer(example)}]


def _answer(example: Item) -> str:
    """The example's answer in a form that its protocol can extract."""
    answer = example.answers[0]
    formed = protocol_of(example.protocol).extract(answer, example.task) is not None
    return answer if formed else f"The answer is: {answer}"
