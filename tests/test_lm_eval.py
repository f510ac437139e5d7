"""The model and the tasks in the real lm-evaluation-harness, offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra lm-eval)")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from typer.testing import CliRunner

import memograft.lm_eval as harness
from memograft import Engine, FastMem
from memograft.cli.app import app
from memograft.errors import PromptTooLongError, SettingsError
from memograft.evaluation.items import world
from memograft.evaluation.methods import METHODS
from memograft.evaluation.runner import run
from memograft.lm_eval import MemograftLM

QUESTION = "What is the capital of France?"
PAGE = "The capital of France is Rome. It moved there in 2031."
OPTIONS = ("Paris.", "Rome.", "The capital of France is Rome.")
QUICK = {"pretrained": "tiny", "batch_size": 8}


def request(kind: str, *args: object, **record: object) -> Instance:
    return Instance(kind, record, args, 0, ("a_task", 0, 1))


def scores(lm: MemograftLM, prompt: str, options: tuple[str, ...] = OPTIONS, **record: object) -> list[float]:
    asked = [request("loglikelihood", prompt, option, **record) for option in options]
    return [value for value, _ in lm.loglikelihood(asked, disable_tqdm=True)]


def chat(lm: MemograftLM, question: str = QUESTION) -> str:
    return lm.apply_chat_template([{"role": "user", "content": question}])


@pytest.fixture(scope="module")
def memorizing() -> MemograftLM:
    return MemograftLM(**QUICK)


@pytest.fixture(scope="module")
def plain() -> MemograftLM:
    return MemograftLM(**QUICK, memory="none")


@pytest.fixture(scope="module")
def hf(plain: MemograftLM) -> HFLM:
    return HFLM(pretrained=plain.engine.model, tokenizer=plain.tokenizer, batch_size=4, max_length=plain.max_length)


def test_without_a_memory_scores_are_those_of_the_harness(plain: MemograftLM, hf: HFLM) -> None:
    page = f"{PAGE}\n\nQ: {QUESTION}\nA:"
    asked = [
        request("loglikelihood", prompt, continuation, documents=[PAGE] if prompt == page else [])
        for prompt in (QUESTION, chat(plain), page, "Q: the capital is ")
        for continuation in (" Paris", "The capital of France is Paris.", "!!")
    ]
    asked.append(request("loglikelihood", "", "The capital"))
    for ours, theirs in zip(plain.loglikelihood(asked), hf.loglikelihood(asked), strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
        assert ours[1] == theirs[1]
    assert any(greedy for _, greedy in plain.loglikelihood(asked))


def test_texts_are_scored_in_windows_like_the_harness_does(plain: MemograftLM, hf: HFLM) -> None:
    asked = [request("loglikelihood_rolling", "The capital of France is Paris. " * n) for n in (1, 3)]
    assert plain.loglikelihood_rolling(asked) == pytest.approx(hf.loglikelihood_rolling(asked), abs=1e-3)
    short = MemograftLM(**QUICK, memory="none", max_length=17)
    other = HFLM(pretrained=plain.engine.model, tokenizer=plain.tokenizer, max_length=16)  # of 16 tokens and one before
    assert short.loglikelihood_rolling(asked) == pytest.approx(other.loglikelihood_rolling(asked), abs=1e-3)


def test_without_a_memory_answers_are_those_of_the_harness(plain: MemograftLM, hf: HFLM) -> None:
    settings = ({"until": ["."], "max_gen_toks": 12}, {"until": ["\n"], "max_gen_toks": 3, "do_sample": False})
    asked = [request("generate_until", p, s) for p in (QUESTION, chat(plain), "The capital of") for s in settings]
    assert plain.generate_until(asked) == hf.generate_until(asked)


def test_options_are_scored_as_the_engine_scores_them(memorizing: MemograftLM) -> None:
    with Engine.from_pretrained("tiny") as engine:
        own = engine.choose(QUESTION, OPTIONS, [PAGE], memory=FastMem()).scores
        lengths = [len(engine.encode(option)) for option in OPTIONS]
    ours = scores(memorizing, chat(memorizing), documents=[PAGE])
    assert [value / n for value, n in zip(ours, lengths, strict=True)] == pytest.approx(own, abs=1e-4)


def test_documents_are_memorized(memorizing: MemograftLM, plain: MemograftLM) -> None:
    with_memory = scores(memorizing, chat(memorizing), context=PAGE)
    without = scores(plain, chat(plain), context=PAGE)
    nothing = scores(plain, chat(plain))
    assert with_memory[2] > without[2] + 0.1
    assert without[2] > nothing[2] + 0.1
    assert scores(memorizing, chat(memorizing), passage=[{"text": PAGE}]) == pytest.approx(with_memory, abs=1e-3)


def test_documents_in_the_prompt_are_memorized_where_they_are(memorizing: MemograftLM) -> None:
    inside = chat(memorizing, f"Documents:\n\n[1] {PAGE}\n\nQuestion: {QUESTION}")
    put = scores(memorizing, chat(memorizing), documents=[PAGE], question=QUESTION)
    assert scores(memorizing, inside, documents=[PAGE], question=QUESTION) == pytest.approx(put, abs=1e-3)


def test_an_empty_prompt_has_no_documents(memorizing: MemograftLM, plain: MemograftLM) -> None:
    assert scores(memorizing, "", documents=[PAGE]) == pytest.approx(scores(plain, ""), abs=1e-4)


def test_kept_answers_belong_to_their_documents_and_memory(tmp_path: Path) -> None:
    file = str(tmp_path / "answers.db")
    first = MemograftLM(**QUICK, keep=file)
    prompt, settings = chat(first), {"until": [], "max_gen_toks": 12}
    pages = ["The capital of France is Rome.", "The capital of France is Oslo."]
    asked = [request("generate_until", prompt, settings, documents=[page]) for page in pages]
    rome, oslo = first.generate_until(asked)
    assert "Rome" in rome
    assert "Oslo" in oslo
    again = MemograftLM(**QUICK, keep=file)
    again.engine.close()  # so it cannot answer anything new
    assert again.generate_until(asked) == [rome, oslo]
    other = MemograftLM(**QUICK, keep=file, memory="fastmem", steps=1)
    other.engine.close()
    with pytest.raises(Exception, match="closed"):
        other.generate_until(asked)
    third = [request("generate_until", prompt, settings, documents=["The capital of France is Bern."])]
    with pytest.raises(Exception, match="closed"):
        again.generate_until(third)


def test_the_cache_of_the_harness_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"got `--use_cache`, which finds them by the prompt alone; .* keep=FILE"):
        lm_eval.simple_evaluate(
            MemograftLM(**QUICK), tasks=["memograft_world_gold"], use_cache=str(tmp_path / "c"), limit=1
        )


def test_a_task_in_the_harness_is_answered_as_by_our_own_evaluation(tmp_path: Path) -> None:
    found = lm_eval.simple_evaluate(
        "memograft",
        model_args="pretrained=tiny,memory=fastmem,batch_size=16",
        tasks=["memograft_world_conflicting"],
        task_manager=harness.task_manager(defaults=False),
        limit=16,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    items = [item for item in world("test") if item.set == "contradicts"][:16]
    with Engine.from_pretrained("tiny") as engine:
        records = run(engine, {"memorized": METHODS["memorized"]}, items, tmp_path, progress=False)
    own = records["memorized"]["contradicts"]
    texts = [sample["resps"][0][0] for sample in found["samples"]["memograft_world_conflicting"]]
    assert texts == [record["text"] for record in own]
    numbers = found["results"]["memograft_world_conflicting"]
    assert numbers["right,none"] == pytest.approx(sum(record["right"] for record in own) / 16)
    assert numbers["right,none"] > 0.5
    assert found["config"]["memory"]["kind"] == "fastmem"


SWAPS = [
    {
        "question": f"what is the capital of {country}",
        "org_context": f"The capital of {country} is {city}.",
        "org_answer": [city],
        "sub_context": f"The capital of {country} is {other}.",
        "sub_answer": [other],
    }
    for country, city, other in (
        ("France", "Paris", "Rome"),
        ("Italy", "Rome", "Oslo"),
        ("Norway", "Oslo", "Paris"),
        ("Spain", "Madrid", "Lima"),
        ("Peru", "Lima", "Madrid"),
        ("Japan", "Tokyo", "Cairo"),
        ("Egypt", "Cairo", "Tokyo"),
    )
]
SAYINGS = [
    {
        "prompt": f'Write a quote that ends in the word "{last}": {start}',
        "classes": [f" {usual}.", f" {last}."],
        "answer_index": 1,
    }
    for start, usual, last in (
        ("Better late than", "never", "early"),
        ("All that glitters is not", "gold", "iron"),
        ("Practice makes", "perfect", "tired"),
        ("Time is", "money", "short"),
        ("Silence is", "golden", "loud"),
    )
]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    files = {"nqswap": SWAPS, "memotrap": SAYINGS}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in files}


def test_public_sets_are_read_from_local_files(sets: dict[str, str], memorizing: MemograftLM) -> None:
    found = lm_eval.simple_evaluate(
        memorizing,
        tasks=["memograft_nqswap", "memograft_memotrap"],
        task_manager=harness.task_manager(defaults=False, **sets),
        limit=2,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert set(found["samples"]) == {
        "memograft_nqswap_gold",
        "memograft_nqswap_conflicting",
        "memograft_nqswap_irrelevant",
        "memograft_memotrap",
    }
    for name, samples in found["samples"].items():
        for sample in samples:
            record = sample["doc"]
            assert all(page in sample["arguments"][0][0] for page in record["documents"]), name
    swapped = found["samples"]["memograft_nqswap_conflicting"][0]["doc"]
    assert swapped["answers"][0] in swapped["documents"][0]
    assert swapped["belief"] not in swapped["documents"][0]
    elsewhere = found["samples"]["memograft_nqswap_irrelevant"][0]["doc"]
    assert elsewhere["answers"][0] not in elsewhere["documents"][0]


def test_the_file_may_be_in_the_environment(sets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"needs the file of nqswap, got none; .* or set MEMOGRAFT_NQSWAP"):
        harness.task_manager(defaults=False).load(["memograft_nqswap_gold"])
    monkeypatch.setenv("MEMOGRAFT_NQSWAP", sets["nqswap"])
    (task,) = harness.task_manager(defaults=False).load(["memograft_nqswap_gold"])["tasks"].values()
    assert len(task.eval_docs) >= 1


def test_the_command_runs_the_harness(tmp_path: Path) -> None:
    arguments = "lm-eval run --model memograft --model_args pretrained=tiny,memory=none --tasks memograft_world_gold"
    more = ["--limit", "2", "--apply_chat_template", "--output_path", str(tmp_path)]
    before = list(sys.argv)
    result = CliRunner().invoke(app, [*arguments.split(), *more])
    assert result.exit_code == 0, result.output
    assert "memograft_world_gold" in result.stdout
    assert sys.argv == before
    (file,) = tmp_path.rglob("results_*.json")
    config = json.loads(file.read_text(encoding="utf-8"))["config"]
    assert config["memory"] is None
    assert config["fingerprint"]


def test_the_command_names_a_wrong_setting() -> None:
    arguments = "lm-eval run --model memograft --model_args pretrained=tiny,stepps=4 --tasks memograft_world_gold"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 1
    assert "got ['stepps']" in result.output


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"stepps": 4}, r"settings of FastMem, got \['stepps'\]; FastMem's are steps"),
        ({"memory": "none", "steps": 4}, r"must be a memory if its settings are given, got none with \['steps'\]"),
        ({"memory": "file.json", "steps": 4}, r"a file has all settings, got 'file.json' and \['steps'\]"),
        ({"batch_size": "many"}, r'`batch_size` must be "auto" or at least 1, got \'many\''),
    ],
)
def test_settings_are_checked(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(SettingsError, match=rule):
        MemograftLM("tiny", **settings)


def test_records_are_checked(memorizing: MemograftLM) -> None:
    other = MemograftLM(**QUICK, documents="pages")
    with pytest.raises(SettingsError, match=r"of a_task, which have \['context'\], got 'pages'; name one of them"):
        scores(other, QUESTION, context=PAGE)
    with pytest.raises(SettingsError, match=r"the field 'context' of a_task must be a string or a list"):
        scores(memorizing, QUESTION, context=[3])
    with pytest.raises(SettingsError, match=r"scored by itself in loglikelihood_rolling, .* pass documents=none"):
        memorizing.loglikelihood_rolling([request("loglikelihood_rolling", "A text.", documents=[PAGE])])
    with pytest.raises(SettingsError, match=r"`generation_kwargs` may have until, .* got \['num_beams'\]; leave them"):
        memorizing.generate_until([request("generate_until", QUESTION, {"num_beams": 2})])
    foreign = chat(memorizing) + "The answer"
    with pytest.raises(SettingsError, match=r"rendered in this run .*, got .*The answer'; leave out"):
        scores(memorizing, foreign, documents=[PAGE])


def test_prompts_that_are_too_long_are_refused_before_any_is_answered(memorizing: MemograftLM) -> None:
    asked = [request("generate_until", "a " * n, {"until": []}) for n in (3, 2000)]
    with pytest.raises(PromptTooLongError, match=r"window of 512 tokens, got 1 of 2 that do not, the first: .*fewshot"):
        memorizing.generate_until(asked)
