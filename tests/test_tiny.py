"""The bundled model matches its card, within the noise of a small sample; published numbers were measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from memograft import Engine, FastMem, Request, Sampling
from memograft.evaluation.items import world
from memograft.evaluation.methods import METHODS
from memograft.evaluation.metrics import table
from memograft.evaluation.runner import run
from memograft.memory.fastmem.rows import context_rows
from memograft.memory.fastmem.train import memorize
from memograft.model.adapter import applied, stack
from memograft.model.loading import BUNDLED
from memograft.model.prefill import prefill

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "src" / "memograft" / BUNDLED["tiny"]
RESULTS = ROOT / "benchmarks" / "results"
TODAY = "world-test-today.json"  # measured with the current defaults; the others are older records
SAMPLE = 48


@pytest.fixture(scope="module")
def accuracy(tiny: Engine, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], float]:
    """(set, method) -> fraction of right answers among the first questions of the tuning split."""
    folder = tmp_path_factory.mktemp("cells")

    def of(which: str, method: str) -> float:
        questions = [item for item in world("tune", SAMPLE) if item.set == which]
        records = run(tiny, {method: METHODS[method]}, questions, folder, progress=False)[method][which]
        return sum(r["right"] for r in records) / len(records)

    return of


def test_the_bundle_is_small_and_holds_no_pickle() -> None:
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20_000_000
    assert not [f.name for f in files if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_it_knows_its_world_and_reads_what_it_never_saw(accuracy: Callable[[str, str], float]) -> None:
    assert accuracy("agrees", "no document") >= 0.85
    assert accuracy("unseen", "plain") >= 0.75


def test_memorizing_makes_it_follow_its_documents(accuracy: Callable[[str, str], float]) -> None:
    plain, memorized = (accuracy("contradicts", m) for m in ("plain", "memorized"))
    assert memorized >= plain + 0.2
    assert accuracy("agrees", "memorized") >= 0.9


def test_with_a_shortlist_the_reported_kl_is_close(tiny: Engine) -> None:
    """To that of passes over the whole prompt, of tiny's 2,048 tokens. The second shortlist leaves the model almost no
    others."""
    model, off = tiny._model, dict[int, list[float]]()
    for item in world("tune", 2):
        if not item.documents:
            continue
        prompt = model.prompts.build([{"role": "user", "content": item.question}], item.documents)
        rows = context_rows(prefill(model.backbone, [prompt.ids], model.pad_id), 0, prompt, model.prompts.turn_end)
        for size in (256, 1024):
            ((adapter, report),) = memorize(model.backbone, rows, replace(tiny.defaults, shortlist=size))
            assert adapter is not None
            ids, places = torch.tensor([prompt.ids]), [t - 1 for t in prompt.context]
            with torch.no_grad():
                before = tiny.model(input_ids=ids).logits[0, places].log_softmax(-1)
                with applied(model.backbone, stack([adapter], model.backbone)):
                    now = tiny.model(input_ids=ids).logits[0, places].log_softmax(-1)
            exact = float(kl_div(now, before, log_target=True, reduction="batchmean"))
            off.setdefault(size, []).append(abs(report.kl / exact - 1))
    assert len(off[256]) >= 14
    assert max(off[256]) < 0.05
    assert statistics.median(off[256]) < 0.01
    assert max(off[1024]) < 0.001


def test_a_conversation_goes_on(tiny: Engine) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "What is the capital of Italy?"},
    ]
    assert "Rome" in tiny.answer(Request(messages=messages, sampling=Sampling(max_new_tokens=24))).text


def test_every_answer_ends_by_itself(tiny: Engine) -> None:
    page = "The mayor of Velmora is Tor Anselk. Velmora lies on the Brin."
    answer = tiny.answer("Who is the mayor of Velmora?", [page], memory=FastMem())
    assert answer.finish_reason == "stop"


def on_record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return record


def test_the_record_is_of_the_whole_split() -> None:
    assert on_record(TODAY)["n"] >= 500


@pytest.mark.parametrize("name", ["world-test.json", "world-test-deep.json", TODAY])
def test_the_page_of_the_method_shows_all_of_them(name: str) -> None:
    assert table(on_record(name)["results"]) in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


def test_the_results_were_measured_with_the_defaults_of_today(tiny: Engine) -> None:
    newer = {"cad": 0.0, "cad_relevance": None}  # settings that were added since, at the values that change nothing
    assert on_record(TODAY)["default"] | newer == asdict(tiny.defaults)


def test_the_default_is_worth_it_and_costs_next_to_nothing() -> None:
    """The claim of the README, from the record of the whole test split."""
    results = on_record(TODAY)["results"]
    gained = {name: cell["minus_plain"] for name, cell in results["memorized"].items()}
    assert gained["contradicts"] >= 0.25
    assert gained["one of five"] >= 0.15
    assert min(gained["agrees"], gained["unseen"], gained["elsewhere"]) >= -0.005
    assert gained["beside"] >= -0.02
