"""Write SQuAD's training questions as samples for SmolLM2's gist, with an instruction to answer briefly.

    python recipes/gist/squad_samples.py train-v1.1.json.xz dev-v1.1.json.xz runs/gist

Without the instruction, SmolLM2 answers in sentences, and training with SQuAD's short answers would mostly teach the
gist to shorten them. `benchmarks/compaction.py --gist` asks in the same words.

    squad.jsonl            the training questions
    squad_held_out.jsonl   some of the development set's "tune" split, for scores during training
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from memograft.evaluation.items import Item
from memograft.evaluation.readers import read

ASK = "Answer with a few words. "


def write(file: Path, items: Iterable[Item]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for item in items:
            texts = [document.text for document in item.documents]
            line = {"documents": texts, "question": ASK + item.question, "answer": item.answers[0]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("development", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=int, default=64)
    args = parser.parse_args()
    write(args.out / "squad.jsonl", read(args.train, contexts=["agrees"], split="all").items)
    held_out = read(args.development, contexts=["agrees"], split="tune", n=args.held_out).items
    write(args.out / "squad_held_out.jsonl", held_out)


if __name__ == "__main__":
    main()
