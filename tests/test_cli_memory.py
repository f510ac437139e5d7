"""`memograft memory` with a bank of two memories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from memograft import Bank
from memograft.cli.app import app
from test_bank import LORA
from test_engine import FACTS, ask


class TestCommands:
    """The commands of `memograft memory`."""

    @pytest.fixture
    def bank(self, make_engine: Any, tmp_path: Path) -> Bank:
        bank = Bank(tmp_path / "bank")
        engine = make_engine(bank=bank)
        for n, documents in enumerate((FACTS[:1], FACTS)):
            engine.answer(ask(documents=documents, memory=LORA))
            os.utime(bank.entries()[0 if n else -1].path, (n, n))
        return bank

    def run(self, *args: object, code: int = 0) -> str:
        result = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["memory", *map(str, args)])
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    def told(self, *args: object) -> Any:
        return json.loads(self.run(*args, "--json"))

    def test_ls_and_show(self, bank: Bank) -> None:
        listed = self.told("ls", bank.folder)
        assert [m["id"] for m in listed["memories"]] == [e.id for e in bank.entries()]
        text = self.run("ls", bank.folder)
        assert "The capital of France is Paris." in text
        assert f"2 memories, {listed['bytes']} bytes" in text
        one = bank.entries()[0]
        shown = self.told("show", bank.folder, one.id[:10])
        assert (shown["id"], shown["settings"]["kind"], shown["report"]["steps"]) == (one.id, "fastmem", 2)
        assert "kind=fastmem" in self.run("show", bank.folder, one.id)

    def test_prefixes(self, make_engine: Any, tmp_path: Path) -> None:
        folder = tmp_path / "bank"
        make_engine(bank=Bank(folder, prefix_files="int8")).answer(ask(documents=FACTS[:2], memory=LORA))
        assert "1 memories and 2 prefixes" in self.run("ls", folder)
        one = next(m["id"] for m in self.told("ls", folder)["memories"] if m["kind"] == "prefix")
        shown = self.told("show", folder, one)
        assert [d["text"] for d in shown["documents"]] == [FACTS[0] if shown["tokens"][0] == 0 else FACTS[1]]
        assert "rounded to int8" in self.run("show", folder, one)

    def test_what_needs_no_weights_loads_no_torch(self, bank: Bank, tmp_path: Path) -> None:
        id, folder = bank.entries()[0].id, str(bank.folder)
        for arguments in (
            ["ls", folder],
            ["show", folder, id],
            ["pin", folder, id],
            ["export", folder, id, str(tmp_path / "it.zip")],
            ["gc", folder, "--max-bytes", "1k"],
            ["rm", folder, id],
        ):
            code = (
                f"import sys; from memograft.cli.app import app; app({['memory', *arguments]}, standalone_mode=False); "
                "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules], file=sys.stderr)"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            assert done.stderr.strip() == "[]", arguments
            assert done.stdout.strip(), arguments

    def test_rm_pin_and_gc(self, bank: Bank) -> None:
        old, new = sorted(bank.entries(), key=lambda entry: entry.used)
        assert self.told("pin", bank.folder, old.id) == {"pinned": [old.id]}
        assert self.told("gc", bank.folder, "--max-bytes", "1k") == {"removed": [new.id]}
        assert "nothing removed" in self.run("gc", bank.folder, "--max-bytes", "1 kB")
        self.run("unpin", bank.folder, old.id)
        assert f"removed {old.id}" in self.run("rm", bank.folder, old.id[:6])
        assert bank.entries() == []

    def test_export_and_import(self, bank: Bank, tmp_path: Path) -> None:
        one = bank.entries()[0]
        self.run("export", bank.folder, one.id, tmp_path / "one.zip")
        assert self.told("import", tmp_path / "new", tmp_path / "one.zip") == {"imported": [one.id]}

    def test_errors(self, bank: Bank, tmp_path: Path) -> None:
        assert "must be the folder of a bank, but does not exist; check the path" in self.run(
            "ls", tmp_path / "none", code=1
        )
        assert "must name one memory" in self.run("rm", bank.folder, bank.entries()[0].id, "zz", code=1)
        assert len(bank.entries()) == 2
        assert "such as 500M or 2G, got 'much'" in self.run("gc", bank.folder, "--max-bytes", "much", code=1)
