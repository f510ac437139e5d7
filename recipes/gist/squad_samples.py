"""Write SQuAD's training questions as samples for SmolLM2's gist, with an instruction to answer briefly.

    python recipes/gist/squad_samples.py train-v1.1.json.xz dev-v1.1.json.xz runs/gist

Without the instruction, SmolLM2 answers in sentences, and training with SQuAD's short answers would mostly teach the
gist to shorten them. `benchmarks/compaction.py --gist` asks in the same words.

    sentences.jsonl              a sentence as the page, two questions about it, and the request to repeat it
    questions.jsonl              the same without these requests, for a MAC: they do not say which page they are about
    squad.jsonl                  whole pages with their questions, and the request to continue one of their sentences
    instructions.jsonl           the same with the question as the document, and the sentence as the input
    sentences_held_out.jsonl     some of the development set's "tune" split, for scores during training
    squad_held_out.jsonl
    instructions_held_out.jsonl

A text that is repeated has a target in each of its tokens, where a question has a few.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from memograft.evaluation.readers import read

ASK = "Answer with a few words. "
REPEAT = (
    "Repeat the document word by word.",
    "Write down the document again.",
    "What does the document say, word for word?",
)
CONTINUE = "Write down the sentence of the document that begins with these words: "
LONGEST = 320  # characters of a sentence


class Sample(NamedTuple):
    """A line of a file."""

    document: str
    question: str
    answer: str


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])", text)


def of_sentences(pages: dict[str, list[tuple[str, str]]], rng: random.Random) -> list[Sample]:
    groups = []
    for text, asked in pages.items():
        for sentence in sentences(text):
            own = [(question, answer) for question, answer in asked if answer in sentence]
            if own and 20 < len(sentence) < LONGEST:
                groups.append((sentence, own))
    rng.shuffle(groups)
    found = []
    for sentence, own in groups:
        found += [Sample(sentence, ASK + question, answer) for question, answer in own[:2]]
        found.append(Sample(sentence, rng.choice(REPEAT), sentence))
    return found


def of_pages(pages: dict[str, list[tuple[str, str]]], rng: random.Random) -> list[Sample]:
    shuffled = list(pages.items())
    rng.shuffle(shuffled)
    found = []
    for text, asked in shuffled:
        found += [Sample(text, ASK + question, answer) for question, answer in asked]
        if short := [sentence for sentence in sentences(text) if len(sentence) < LONGEST]:
            sentence = rng.choice(short)
            found.append(Sample(text, CONTINUE + " ".join(sentence.split()[:4]), sentence))
    return found


def turned(samples: Iterable[Sample]) -> list[Sample]:
    """The question becomes what is compressed."""
    return [Sample(own.question, own.document, own.answer) for own in samples]


def write(file: Path, samples: Iterable[Sample]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for sample in samples:
            line = {"documents": [sample.document], "question": sample.question, "answer": sample.answer}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("development", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=int, default=120)
    args = parser.parse_args()
    pages: dict[str, list[tuple[str, str]]] = {}
    for item in read(args.train, contexts=["agrees"], split="all").items:
        pages.setdefault(item.documents[0].text, []).append((item.question, item.answers[0]))
    rng = random.Random(0)
    short = of_sentences(pages, rng)
    write(args.out / "sentences.jsonl", short)
    questions = [sample for sample in short if sample.question not in REPEAT]
    write(args.out / "questions.jsonl", questions)
    write(args.out / "instructions.jsonl", turned(questions))
    write(args.out / "squad.jsonl", of_pages(pages, rng))
    held_out = read(args.development, contexts=["agrees"], split="tune", n=args.held_out).items
    asked = [Sample(item.documents[0].text, ASK + item.question, item.answers[0]) for item in held_out]
    write(args.out / "squad_held_out.jsonl", asked)
    held_out_short = [
        sample._replace(document=own[0])
        for sample in asked
        if (own := [sentence for sentence in sentences(sample.document) if sample.answer in sentence])
        and len(own[0]) < LONGEST
    ]
    write(args.out / "sentences_held_out.jsonl", held_out_short)
    write(args.out / "instructions_held_out.jsonl", turned(held_out_short))


if __name__ == "__main__":
    main()
