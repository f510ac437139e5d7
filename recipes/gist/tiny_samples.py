"""Write training samples for tiny's gist: pages about invented things, with questions, as JSON lines.

    python recipes/gist/tiny_samples.py runs/gist/tiny.jsonl --pages 40000

The names of the held-out questions (`memograft eval world`) do not occur in them: see `recipes/tiny/language.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tiny"))

from data import example

MIX = {"fresh_short": 0.2, "fresh": 0.4, "fresh_alike": 0.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pages", type=int, default=40000, help="examples of one to three pages each")
    parser.add_argument("--seed", default="gist")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as file:
        for n in range(args.pages):
            item = example(random.Random(f"{args.seed}-{n}"), MIX)
            for (_, question), (_, answer) in zip(item.turns[::2], item.turns[1::2], strict=True):
                line = {"documents": item.documents, "question": question, "answer": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
