"""Zip files of memories from other sources, including malicious ones."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from memograft import Bank
from memograft.errors import MemoryFormatError
from memograft.memory.folder import FILES
from test_bank import LORA
from test_engine import FACTS, ask


@pytest.mark.parametrize(
    ("big", "method", "claimed", "said"),
    [
        (
            "memograft.json",
            zipfile.ZIP_DEFLATED,
            None,
            r"at most 32 times .* got memograft.json with 50000000 bytes in .*",
        ),
        ("adapter_model.safetensors", zipfile.ZIP_DEFLATED, None, "at most 32 times .* export the memory again"),
        ("adapter_model.safetensors", zipfile.ZIP_DEFLATED, 1000, "is not an exported memory .*CRC"),
        ("adapter_config.json", zipfile.ZIP_BZIP2, 1000, "is neither stored nor deflated"),
    ],
)
def test_a_zip_file_that_would_fill_memory_or_disk(
    tmp_path: Path, big: str, method: int, claimed: int | None, said: str
) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        for name in FILES:
            archive.writestr(name, bytes(50_000_000) if name == big else b"{}", method)
    if claimed is not None:
        content = (tmp_path / "bomb.zip").read_bytes()
        (tmp_path / "bomb.zip").write_bytes(
            content.replace((50_000_000).to_bytes(4, "little"), claimed.to_bytes(4, "little"))
        )
    tracemalloc.start()
    try:
        with pytest.raises(MemoryFormatError, match=said):
            Bank(tmp_path / "bank").take(tmp_path / "bomb.zip")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_file_packed_by_somebody_else(make_engine: Any, tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    make_engine(bank=bank).answer(ask(documents=FACTS, memory=LORA))
    (entry,) = bank.entries()
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in entry.path.iterdir():
            archive.write(file, file.name)
    assert Bank(tmp_path / "other").take(tmp_path / "packed.zip").id == entry.id
    content = bytearray((tmp_path / "packed.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        start = archive.getinfo("memograft.json").header_offset + 30 + len("memograft.json")
    for name, at, value in (("deflate", start, 0xFF), ("locked", content.index(b"PK\1\2") + 8, 1)):
        broken = bytearray(content)
        broken[at] = value
        (tmp_path / f"{name}.zip").write_bytes(broken)
        with pytest.raises(MemoryFormatError, match=r"is not an exported memory \(.*\); export it again"):
            bank.take(tmp_path / f"{name}.zip")
