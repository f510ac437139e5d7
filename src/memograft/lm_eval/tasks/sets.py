"""The questions of our tasks as records of the harness, and how their answers are scored.

Questions, wording and scores are those of `memograft eval`. The harness calls a set with the values of `--metadata` and
`--model_args`; the file of a public set is named by `--metadata '{"nqswap": "FILE"}'` or by MEMOGRAFT_NQSWAP.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from datasets import Dataset

from memograft.errors import SettingsError
from memograft.evaluation.items import Item, world
from memograft.evaluation.readers import read
from memograft.evaluation.scores import exact_match, f1, says
from memograft.prompt.builder import render_documents

Records = dict[str, Dataset]


def _file(name: str, given: Mapping[str, object]) -> str:
    variable = f"MEMOGRAFT_{name.upper()}"
    path = given.get(name) or os.environ.get(variable)
    if not path:
        raise SettingsError(
            f'the task needs the file of {name}, got none; pass --metadata \'{{"{name}": "FILE"}}\', or set {variable}'
        )
    return str(path)


def _records(items: Sequence[Item], ignore_case: bool) -> Records:
    """Records whose prompt has the documents as the engine would put them there, so any model can be asked."""
    made = [
        {
            "id": item.id,
            "prompt": render_documents([d.text for d in item.documents], item.question),
            "question": item.query or item.question,
            "documents": [d.text for d in item.documents],
            "answers": list(item.answers),
            "belief": item.belief,
            "choices": sorted((item.answers[0], item.belief)),
            "label": sorted((item.answers[0], item.belief)).index(item.answers[0]),
            "ignore_case": ignore_case,
        }
        for item in items
    ]
    return {"test": Dataset.from_list(made)}


def _nqswap(context: str) -> Callable[..., Records]:
    return lambda **given: _records(read(_file("nqswap", given), contexts=[context]).items, ignore_case=True)


nqswap_gold, nqswap_conflicting, nqswap_irrelevant = map(_nqswap, ("agrees", "contradicts", "irrelevant"))


def memotrap(**given: object) -> Records:
    """MemoTrap: two candidates to end a sentence with, of which the document asks for one."""
    return _records(read(_file("memotrap", given)).items, ignore_case=True)


def _world(name: str) -> Callable[..., Records]:
    return lambda **_: _records([item for item in world("test") if item.set == name], ignore_case=False)


world_gold, world_conflicting, world_irrelevant = map(_world, ("agrees", "contradicts", "elsewhere"))


def score(record: Mapping[str, object], results: Sequence[str]) -> dict[str, float]:
    """The numbers of one answer, as `memograft eval` computes them."""
    (text,), answers = results, list(map(str, record["answers"]))  # type: ignore[call-overload]
    ignore_case = bool(record["ignore_case"])
    return {
        "right": float(any(says(text, answer, ignore_case) for answer in answers)),
        "belief": float(says(text, str(record["belief"]), ignore_case)),
        "em": float(exact_match(text, answers)),
        "f1": f1(text, answers),
    }
