"""Write the held-out questions into the package, where `memograft eval world` reads them.

    python recipes/tiny/export_sets.py

The output is the same bytes each time, with the same zlib: one JSON object per line, in the format of
`memograft.evaluation.items.read_items`.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from sets import FRAME, SETS, items

WORLD = Path(__file__).resolve().parents[2] / "src" / "memograft" / "data" / "world"
SPLITS = ("test", "tune")
COUNT = 500  # questions in each set


def lines(split: str) -> str:
    """The JSONL text of one split, before compression."""
    records = (
        {
            "id": item.id,
            "set": item.set,
            "question": item.question,
            "documents": item.documents,
            "answer": item.right,
            "belief": item.belief,
            "other": item.other,
            "frame": FRAME,
            "kind": item.kind,
        }
        for which in SETS
        for item in items(which, COUNT, split)
    )
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main() -> None:
    WORLD.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        whole, part = WORLD / f"{split}.jsonl.gz", WORLD / f"{split}.jsonl.gz.part"
        part.write_bytes(gzip.compress(lines(split).encode(), mtime=0))
        os.replace(part, whole)
        print(f"{whole.name}: {COUNT} questions of each of {len(SETS)} sets, {whole.stat().st_size} bytes")


if __name__ == "__main__":
    main()
