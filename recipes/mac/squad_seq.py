"""Write SQuAD-Seq, as MAC's paper divides SQuAD 1.1 (arXiv 2403.04317), as JSON lines.

    python recipes/mac/squad_seq.py train-v1.1.json.xz dev-v1.1.json.xz runs/mac/squad

    pretrain.jsonl, pretrain_validation.jsonl    train questions 0 to 40,006 and to 42,118
    train.jsonl, validation.jsonl                42,118 to 82,011 and to 87,599
    test.jsonl                                   the development set

The answer is the shortest, with a capital, as in the paper. A page is the document of all its questions. Each question
has an instruction to answer briefly, without which SmolLM2 answers in sentences.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

ASK = "Answer with a few words. "
PARTS = {"pretrain": 40_006, "pretrain_validation": 42_118, "train": 82_011, "validation": 87_599}


def samples(file: Path) -> Iterator[dict[str, object]]:
    """The questions of a file, in order."""
    opened = lzma.open if file.suffix == ".xz" else open
    with opened(file, "rt", encoding="utf-8") as text:
        articles = json.load(text)["data"]
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answer = min((found["text"] for found in asked["answers"]), key=len)
                answer = answer[:1].upper() + answer[1:]
                yield {"documents": [paragraph["context"]], "question": ASK + asked["question"], "answer": answer}


def write(file: Path, found: Iterator[dict[str, object]]) -> int:
    """Write the lines; returns how many."""
    lines = [json.dumps(sample, ensure_ascii=False) for sample in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("development", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    found, begin = samples(args.train), 0
    for name, end in PARTS.items():
        print(f"{name}: {write(args.out / f'{name}.jsonl', islice(found, end - begin))} questions")
        begin = end
    print(f"test: {write(args.out / 'test.jsonl', samples(args.development))} questions")


if __name__ == "__main__":
    main()
