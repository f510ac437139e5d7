"""Each table of results equals its record, and the record was made from a clean commit."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from memograft import FastMem, LexicalEmbedder
from memograft.evaluation.metrics import table
from memograft.evaluation.utilisation import table as three_kinds

ROOT = Path(__file__).resolve().parent.parent
MINILM = "all-MiniLM-L6-v2"


def shown(page: str, marker: str) -> str:
    """The text between `<!-- marker -->` and `<!-- /marker -->`."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)\n<!-- /{marker} -->", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert found, f"{page} has no table {marker}"
    return found[1]


def recorded(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    return made


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return recorded("nqswap-test")


def test_the_tables_of_nq_swap(record: dict[str, Any]) -> None:
    assert shown("docs/method.md", "nqswap") == table(record["results"])
    assert shown("docs/method.md", "nqswap-clean") == table(record["results"], clean=True)


def test_the_tables_of_nq_swap_with_the_defaults_of_today() -> None:
    made = recorded("nqswap-four-steps-test")
    assert shown("docs/method.md", "nqswap-four") == table(made["results"])
    assert shown("docs/method.md", "nqswap-four-clean") == table(made["results"], clean=True)
    assert (made["default"]["steps"], made["default"]["learning_rate"], made["default"]["end"]) == (4, 3e-3, True)


def test_the_tables_of_contrasts() -> None:
    made, elsewhere = (recorded(f"{n}-contrasts-test") for n in ("nqswap", "elsewhere"))
    assert shown("docs/method.md", "contrasts") == table(made["results"])
    assert shown("docs/method.md", "contrasts-clean") == table(made["results"], clean=True)
    assert shown("docs/method.md", "contrasts-elsewhere") == table(elsewhere["results"])
    assert "dirty" not in str([made["commits_of_the_answers"], elsewhere["commits_of_the_answers"]])


def test_the_table_of_three_kinds_of_pages() -> None:
    made, contrasts = recorded("cub"), recorded("nqswap-contrasts-test")
    assert shown("docs/method.md", "cub") == three_kinds(made["utilisation"])
    assert "dirty" not in str([made["commit"], made["commits_of_the_answers"]])
    for method, by_context in made["utilisation"].items():
        for context, name in (("gold", "agrees"), ("conflicting", "contradicts")):
            assert by_context[context]["n"] >= 100
            assert by_context[context]["share"] == contrasts["results"][method][name]["accuracy"], "the same answers"


def test_the_tables_of_the_preset() -> None:
    made, elsewhere = (recorded(f"{n}-faithful-test") for n in ("nqswap", "elsewhere"))
    assert shown("docs/method.md", "faithful") == table(made["results"])
    assert shown("docs/method.md", "faithful-clean") == table(made["results"], clean=True)
    assert shown("docs/method.md", "faithful-elsewhere") == table(elsewhere["results"])
    for each in (made, elsewhere):
        assert "dirty" not in str([each["commit"], each["commits_of_the_answers"]])
        memory = each["settings"]["memorized, faithful"]["memory"]
        assert {n: memory[n] for n in asdict(FastMem.faithful())} == asdict(FastMem.faithful()), "it was changed since"
    rows = [row.strip("| ").split(" | ") for row in shown("docs/method.md", "faithful-details").splitlines()[2:]]
    numbers = ("em", "f1", "unfinished", "repeating")
    assert rows == [
        [method, *(" / ".join(f"{by_set[name][n]:.3f}" for name in ("contradicts", "agrees")) for n in numbers)]
        for method, by_set in made["results"].items()
    ]


@pytest.mark.parametrize(
    ("file", "page", "marker"),
    [
        ("speed", "method", "costs"),
        ("decoding", "method", "decoding"),
        ("contrast-costs", "method", "contrast-costs"),
        ("answer-costs", "method", "answer-costs"),
        ("carried-costs", "carried", "carried-costs"),
    ],
)
def test_the_tables_of_costs(file: str, page: str, marker: str) -> None:
    made = recorded(file)
    lines = [line for row in made["results"].values() for line in row]
    found = [row.strip("| ").split(" | ") for row in shown(f"docs/{page}.md", marker).splitlines()[2:]]
    numbers = [[line["name"], *(f"{line[n]:.2f}" for n in ("median", "least", "largest"))] for line in lines]
    assert [row[:4] for row in found] == numbers
    for row, line in zip(found, lines, strict=True):
        if line["target"] is not None:
            met = line["median"] >= line["target"] if line["at_least"] else line["median"] <= line["target"]
            assert row[4:6] == [f"{'>=' if line['at_least'] else '<='} {line['target']:g}", "yes" if met else "no"]
    assert not [commit for commit in made["commits"].values() if "dirty" in commit]


def test_the_table_of_gists() -> None:
    made = recorded("gist-tiny")
    names = {"plain": "the page (plain)", "no document": "nothing (no document)", "gist tiny": '`Gist("tiny")`'}
    names["gist tiny, refine=60"] = '`Gist("tiny", refine=60)`'
    found = sorted(row.strip("| ").split(" | ") for row in shown("docs/gist.md", "gist-tiny").splitlines()[2:])
    wanted = []
    for name, sets in made["results"].items():
        cells = [sets[of] for of in ("unseen", "contradicts", "elsewhere")]
        bounds = [(cell["accuracy"], *cell["interval"]) for cell in cells]
        wanted.append([names.get(name, name), *(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in bounds)])
    assert found == sorted(wanted)
    assert shown("docs/gist.md", "gist-alpaca") == table(recorded("gist-alpaca")["results"])


def test_the_table_of_fewer_gist_tokens() -> None:
    made = recorded("gist-tiny-k")
    names = {"plain": "the page (plain)", "no document": "nothing (no document)", "gist tiny": 'k = 10, `Gist("tiny")`'}
    names |= {f"gist k{k}": f"k = {k}" for k in (5, 2, 1)}
    found = [row.strip("| ").split(" | ") for row in shown("docs/gist.md", "gist-tiny-k").splitlines()[2:]]
    cells = {names[name]: sets["unseen"] for name, sets in made["results"].items()}
    bounds = {name: (cell["accuracy"], *cell["interval"]) for name, cell in cells.items()}
    assert dict(found) == {name: f"{mean:.3f} [{low:.3f}, {high:.3f}]" for name, (mean, low, high) in bounds.items()}
    assert "dirty" not in str([made["commit"], made["commits_of_the_answers"]])
    same = (recorded(name)["results"]["gist tiny"]["unseen"]["accuracy"] for name in ("gist-tiny", "gist-tiny-k"))
    assert len({*same}) == 1


def test_the_tables_of_mac() -> None:
    made, as_lora = recorded("mac-tiny"), recorded("mac-tiny-lora")
    parts = {part: made["results"][part]["ways"] for part in ("quality", "groups", "bounded", "retention")}
    parts["lora"] = {name: row for name, row in as_lora["results"]["quality"]["ways"].items() if "MAC" in name}
    for part, ways in parts.items():
        found = [row.strip("| ").split(" | ") for row in shown("docs/mac.md", f"mac-{part}").splitlines()[2:]]
        wanted = []
        for name, row in ways.items():
            (low, high), mean = row["accuracy_interval"], row["accuracy"]
            cells = [name, f"{mean:.3f} [{low:.3f}, {high:.3f}]", f"{row['em']:.3f}", f"{row['unfinished']}"]
            for other, change in row["minus"].items():
                low, high = change["interval"]
                cells += [f"{other} {change['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"]
            wanted.append([*cells[:4], ", ".join(cells[4:])])
        assert [[*row, ""][:5] for row in found] == wanted
    assert as_lora["training"]["modulation"] == "lora"
    assert "dirty" not in as_lora["commit"]
    questions = made["results"]["costs"]["questions"]
    found = [row.strip("| ").split(" | ") for row in shown("docs/mac.md", "mac-costs").splitlines()[2:]]
    assert found == [[name, f"{1000 * row['cpu_seconds']:.2f}"] for name, row in questions.items()]
    assert "dirty" not in made["commit"]


def test_the_tables_of_smollm2s_mac() -> None:
    made, costs = recorded("mac-squad"), recorded("mac-squad-costs")
    found = [row.strip("| ").split(" | ") for row in shown("docs/mac.md", "mac-squad").splitlines()[2:]]
    wanted = []
    for name, row in made["results"]["quality"]["ways"].items():
        cells = [name]
        for mean, bounds in (("accuracy", "accuracy_interval"), ("f1", "f1_interval")):
            low, high = row[bounds]
            cells += [f"{row[mean]:.3f} [{low:.3f}, {high:.3f}]"]
        minus = [
            f"{other} {change['difference']:+.3f} [{change['interval'][0]:+.3f}, {change['interval'][1]:+.3f}]"
            for other, change in row["minus"].items()
        ]
        wanted.append([*cells, f"{row['em']:.3f}", f"{row['unfinished']}", ", ".join(minus)])
    assert [[*row, ""][:6] for row in found] == wanted
    found = [row.strip("| ").split(" | ") for row in shown("docs/mac.md", "mac-squad-costs").splitlines()[2:]]
    times = costs["results"]["costs"]["questions"]
    assert found == [[name, f"{1000 * row['cpu_seconds']:.1f}"] for name, row in times.items()]
    assert not [record for record in (made, costs) if "dirty" in record["commit"]]
    assert made["mac"] == costs["mac"]


CARRIED = (("carried-squad", "carried"), ("carried-nqswap", "carried-nqswap"), ("gist-squad", "gist-squad"))


@pytest.mark.parametrize(("file", "marker"), CARRIED)
def test_the_tables_of_carried_contexts(file: str, marker: str) -> None:
    made, page = recorded(file), marker.partition("-")[0]
    found = [row.strip("| ").split(" | ") for row in shown(f"docs/{page}.md", marker).splitlines()[2:]]
    wanted = []
    for name, row in made["ways"].items():
        low, high = row["of_whole_interval"]
        numbers = [f"{row['f1']:.3f}", f"{row['of_whole']:.2f} [{low:.2f}, {high:.2f}]", f"{row['accuracy']:.3f}"]
        wanted.append([name, *numbers, "-" if row["kl"] is None else f"{row['kl']:.3f}", f"{row['bytes'] / 1024:.0f}"])
    assert found == wanted
    assert "dirty" not in made["commit"]


def test_the_table_of_arrivals() -> None:
    made = recorded("arrivals")
    rows = ["| | before | now | now / before |", "|---|---|---|---|"]
    for key, title in (
        ("tokens_per_second", "new tokens per second"),
        ("first_token_p50", "seconds to the first token, median"),
        ("first_token_p95", "seconds to the first token, 95% of requests"),
    ):
        before, now = (made["medians"][name][key] for name in ("against", "here"))
        ratio = made["ratios"][key]
        spread = f"{ratio['median']:.2f} [{ratio['least']:.2f}, {ratio['most']:.2f}]"
        rows.append(f"| {title} | {before:.1f} | {now:.1f} | {spread} |")
    assert shown("docs/method.md", "arrivals").splitlines() == rows
    assert not any(run["errors"] for runs in made["runs"].values() for run in runs)
    assert "dirty" not in made["commit"]


def test_the_table_of_multiple_choice() -> None:
    results = recorded("rtd-choice-smollm2")["results"]
    sizes = " | ".join(f"{name} (n = {by_method['chance']['n']})" for name, by_method in results.items())
    rows = [f"| accuracy [95%] | {sizes} |", "|---|" + "---|" * len(results)]
    for method in results["ARC-Easy"]:
        cells = [by_method[method] for by_method in results.values()]
        if "interval" not in cells[0]:
            rows.append(f"| {method} | " + " | ".join(f"{cell['accuracy']:.3f}" for cell in cells) + " |")
        elif ":" in method:
            said = ["{:.3f} [{:.3f}, {:.3f}]".format(cell["accuracy"], *cell["interval"]) for cell in cells]
            rows.append(f"| {method} | " + " | ".join(said) + " |")
    assert shown("docs/datastore.md", "choice-smollm2").splitlines() == rows


def test_the_table_of_the_readme() -> None:
    nqswap, elsewhere = (recorded(f"{n}-faithful-test")["results"] for n in ("nqswap", "elsewhere"))
    methods = ("memorized", "memorized, faithful", "CAD")
    rows = ["| page | | plain | `FastMem()` | `FastMem.faithful()` | `Cad()` |", "|---|---|---|---|---|---|"]
    for results, pages, shown_as, measure, change in (
        (nqswap, "contradicts", "right", "accuracy", "minus_plain"),
        (nqswap, "contradicts", "clean", "clean", "clean_minus_plain"),
        (nqswap, "agrees", "right", "accuracy", "minus_plain"),
        (nqswap, "agrees", "clean", "clean", "clean_minus_plain"),
        (elsewhere, "elsewhere", "right", "accuracy", "minus_plain"),
    ):
        cells = [f"{results['plain'][pages][measure]:.3f}"]
        for method in methods:
            cell = results[method][pages]
            low, high = cell[f"{change}_interval"]
            cells.append(f"{cell[measure]:.3f} ({cell[change]:+.3f} [{low:+.3f}, {high:+.3f}])")
        rows.append(f"| {pages} | {shown_as} | {' | '.join(cells)} |")
    assert shown("README.md", "short").splitlines() == rows


def test_the_record_says_where_it_is_from(record: dict[str, Any]) -> None:
    assert record["n"] >= 300
    assert record["split"] == "test"
    assert record["commits_of_the_answers"] == [record["commit"]]
    assert "dirty" not in record["commit"]
    assert all(cell["failed"] == 0 for by_set in record["results"].values() for cell in by_set.values())


@pytest.mark.parametrize(
    ("marker", "name"),
    [
        ("five", "one-of-five"),
        ("known", "known-elsewhere"),
        ("squad", "squad"),
        ("memotrap", "memotrap"),
        ("uncalibrated", "world-uncalibrated"),
        ("nqswap-paper", "nqswap-paper-protocol"),
        ("irrelevant-memorized", "irrelevant-memorized"),
    ],
)
def test_the_other_sets(marker: str, name: str) -> None:
    made = recorded(f"{name}-test")
    assert shown("docs/method.md", marker) == table(made["results"])
    assert made["split"] == "test"
    assert made["commits_of_the_answers"] == [made["commit"]]
    assert "dirty" not in made["commit"]


def test_the_table_of_relevance() -> None:
    made = recorded("relevance-test")
    pages = sorted(made["results"]["pages"].items())
    rows = [f"| {kind} | {row['n']} | {row['kept']:.3f} | {row.get('auc', '')} |" for kind, row in pages]
    assert shown("docs/method.md", "relevance").splitlines()[2:] == rows
    assert made["split"] == "test"
    assert "dirty" not in made["commit"]


def test_the_tables_of_joined_memories() -> None:
    made = recorded("compose")
    assert shown("docs/method.md", "composed") == table(made["results"])
    assert shown("docs/method.md", "composed-clean") == table(made["results"], clean=True)
    rows = [
        f"| {when} | {by['together']:.2f} | {by['composed']:.2f} | {by['composed / together']:.2f} |"
        for when, by in made["times"].items()
    ]
    assert shown("docs/method.md", "composed-times").splitlines()[2:] == rows
    said = (ROOT / "docs" / "method.md").read_text("utf-8")
    for by_measure in made["differences"].values():
        for found in by_measure.values():
            low, high = (100 * bound for bound in found["interval"])
            assert f"{100 * found['difference']:+.1f} [{low:.1f}, {high:.1f}]" in said
    assert made["n"] >= 100
    assert made["split"] == "test"
    assert made["commits_of_the_answers"] == [made["commit"]]
    assert "dirty" not in made["commit"]


def test_the_table_of_the_soak() -> None:
    made = recorded("soak")
    tried: Counter[str] = Counter()
    for counts in made["results"].values():
        tried.update(counts)
    rows = [f"| {what.replace('_', ' ')} | {tried[what]} |" for what in sorted(tried)]
    assert shown("docs/reliability.md", "soak").splitlines()[2:] == rows
    assert made["failed"] == []
    assert "dirty" not in made["commit"]


def test_the_table_of_the_searches() -> None:
    made = recorded("search")
    rows = {row["way"]: row for row in made["results"]}
    lines = shown("docs/search.md", "search").splitlines()[2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(rows)
    for line, row in zip(lines, rows.values(), strict=True):
        assert line.split(" | ")[1:3] == [f"{row['ndcg@10']:.3f}", f"{row['recall@10']:.3f}"]
    words, vectors, both = (rows[way]["ndcg@10"] for way in ("BM25", MINILM, f"hybrid of BM25 and {MINILM}"))
    assert both > words > vectors
    assert rows[f"hybrid of BM25 and {MINILM}"]["difference"][1] > 0, "not by chance"
    assert f"reaches {words:.3f}" in (LexicalEmbedder.__doc__ or "")
    assert "dirty" not in made["commit"]


@pytest.mark.parametrize("name", ["large-store", "large-store-10m"])
def test_the_tables_of_large_stores(name: str) -> None:
    made = recorded(name)
    found = made["results"]
    rows = []
    for search in [key.removesuffix(" recall") for key in found["search"] if key.endswith(" recall")]:
        way, nprobe, rerank = [*search.split(), ""][:3]
        recall, milliseconds, ratio = (found["search"][f"{search} {key}"] for key in ("recall", "cpu_ms", "times raw"))
        cells = [{"raw": "raw FAISS", "store": "store"}[way], nprobe, rerank, f"{recall:.3f}", f"{milliseconds:.2f}"]
        rows.append([*cells, f"{ratio:.2f}"])
    lines = shown("docs/search.md", f"{name}-search").splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == rows
    build, opened, raw = (found[step] for step in ("build", "open", "raw"))
    sizes = [f"{n / 2**20:.0f}" for n in (build["database_bytes"], build["index_bytes"], raw["bytes"])]
    rows = [
        ["build, CPU seconds", f"{build['cpu_seconds']:.0f}", f"{raw['cpu_seconds']:.0f}"],
        ["clusters", f"{opened['clusters']}", f"{opened['raw_clusters']}"],
        ["database, MiB", sizes[0], ""],
        ["index, MiB", sizes[1], sizes[2]],
        ["peak memory of building, MiB", f"{build['peak_mib']}", f"{raw['peak_mib']}"],
        ["peak memory of a reader, MiB", f"{opened['reader_peak_mib']}", ""],
        ["open, seconds, reader", f"{opened['reader_seconds']:.1f}", f"{opened['raw_seconds']:.1f}"],
        ["open, seconds, writer", f"{opened['writer_seconds']:.1f}", ""],
    ]
    lines = shown("docs/search.md", name).splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == rows
    assert "dirty" not in made["commit"]


def test_every_record_is_listed_with_its_commit() -> None:
    listed = dict(
        re.findall(
            r"^\| \[([\w-]+)\]\(.*\| ([\w-]+) \| `.*` \|$", (ROOT / "docs" / "results.md").read_text("utf-8"), re.M
        )
    )
    records = (ROOT / "benchmarks" / "results").glob("*.json")
    assert listed == {file.stem: json.loads(file.read_text("utf-8"))["commit"] for file in records}


def test_the_numbers_beside_the_papers_are_those_of_the_pages_that_are_linked() -> None:
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    measured = [row.split(" | ")[2] for row in re.findall(r"^\| .*\[table\]\(.*$", text, re.M)]
    assert len(measured) >= 6
    for cell in measured:
        numbers, page = re.fullmatch(r"(.*) \(\[table\]\(([\w-]+\.md).*", cell).groups()  # type: ignore[union-attr]
        shown_there = (ROOT / "docs" / page).read_text("utf-8")
        found = re.findall(r"(?<![\d\w])\.\d+", numbers)
        assert found, cell
        assert [n for n in found if n not in shown_there] == [], cell


def test_the_tables_of_the_bank() -> None:
    made = recorded("bank")
    rows = []
    for name, row in made["results"].items():
        when, files = name.split(", ")
        files = {"None": "none"}.get(files, files)
        rows.append(
            f"| {when} | {files} | {row['ratio']:.2f} | {row['reused']:.2f} | {row['cached_tokens']:.0f} | "
            f"{row['same_answer']:.2f} | {row['bytes'] / 1e6:.1f} |"
        )
    assert shown("docs/bank.md", "bank").splitlines()[2:] == rows
    assert "dirty" not in made["commit"]
    kept = recorded("kept-rows")
    rows = [
        f"| {name} | {row['total_ratio']:.2f} [{row['total_ratio_least']:.2f}, {row['total_ratio_most']:.2f}] | "
        f"{row['decode_ratio']:.2f} [{row['decode_ratio_least']:.2f}, {row['decode_ratio_most']:.2f}] |"
        for name, row in kept["results"].items()
    ]
    assert shown("docs/bank.md", "kept-rows").splitlines()[2:] == rows
    assert "dirty" not in kept["commit"]
