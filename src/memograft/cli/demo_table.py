"""The demo's outcomes as tables and a conclusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import HORIZONTALS
from rich.console import Group
from rich.table import Table
from rich.text import Text

from memograft.cli.document_status import disagreements, nothing_memorized
from memograft.cli.models import title
from memograft.cli.outcome import KINDS, Outcome

if TYPE_CHECKING:
    from memograft.cli.outcome import Summary

_ABOUT = {
    "contradicts": "Pages that contradict what the model knows, on purpose",
    "agrees": "Pages that agree with it",
    "extends": "Pages about invented things",
}
_SPOILED = "Went the other way, memorizing made a right answer wrong"


def tables(outcomes: Sequence[Outcome]) -> Group:
    """A table per kind with a row per question. Answers with the document's value are green, others red."""
    parts: list[Table | Text] = []
    for kind in KINDS:
        chosen = [o for o in outcomes if o.question.kind == kind]
        if chosen:
            parts += [_table(_ABOUT[kind], chosen), Text()]
    return Group(*parts)


def _table(about: str, outcomes: Sequence[Outcome]) -> Table:
    made = Table(title=about, title_justify="left", title_style="bold", box=HORIZONTALS, expand=True, show_lines=True)
    made.padding = (0, 1, 0, 0)  # saves width for terminals of 80 columns
    for name in ("question", "no document", "plain", "memorized"):
        made.add_column(name, ratio=1, overflow="fold")
    made.add_column("page says", width=10, overflow="fold")
    made.add_column("loss", justify="right", no_wrap=True)
    for o in outcomes:
        made.add_row(
            Text(o.question.question),
            _answer(o.closed, o.right_closed),
            _answer(o.plain, o.right_plain),
            _answer(o.memorized, o.right_memorized),
            Text.assemble(
                (o.question.expected, "bold"),
                ("\n" + (title(o.hits[0].document) if o.hits else "(nothing found)"), "dim"),
            ),
            Text(f"{_loss(o)}\n{o.memorized_seconds:.2f} s", style="dim"),
        )
    return made


def _loss(outcome: Outcome) -> str:
    if nothing_memorized(outcome.memory):
        return "nothing\nmemorized"
    loss = f"{outcome.memory.loss_before:.2f} → {outcome.memory.loss_after:.2f}"
    return "rolled back" if outcome.memory.rolled_back else loss


def _answer(text: str, right: bool) -> Text:
    return Text(text or "(nothing)", style="green" if right else "red")


def conclusion(outcomes: Sequence[Outcome], counts: Summary) -> Group:
    """The totals of the tables, including answers that memorizing made wrong."""
    right, n = counts["right"], counts["questions"]
    lines = [
        f"Answers with the page's value: {right['closed_book']} of {n} without documents, {right['plain']} plainly, "
        f"{right['memorized']} memorized.",
        f"Changed from the model's own belief to the document's: {counts['changed_to_document']} "
        f"({counts['changed_only_by_memorizing']} of them only by memorizing, the others already by reading).",
        f"Plainly and memorized: {counts['right_both_ways']} right both ways, {counts['wrong_then_right']} wrong then "
        f"right, {counts['right_then_wrong']} right then wrong, {counts['wrong_both_ways']} wrong both ways.",
        f"Pages memorized: {counts['documents_memorized']} of {counts['documents']} retrieved"
        f"{_nothing(counts['nothing_memorized'])}.",
        f"Seconds per question, {n} questions in small batches: {counts['plain_seconds'] / max(n, 1):.2f} plainly, "
        f"{counts['memorized_seconds'] / max(n, 1):.2f} memorized.",
    ]
    parts = [Text(line) for line in lines]
    spoiled = [o for o in outcomes if o.spoiled]
    if spoiled:
        parts.append(Text(f"{_SPOILED}: {len(spoiled)}", style="bold red"))
        for o in spoiled:
            was = o.plain if o.right_plain else f"{o.closed} (without documents)"
            parts.append(Text(f"  {o.question.question} {was} -> {o.memorized}", style="red"))
    else:
        parts.append(Text(f"{_SPOILED}: none.", style="green"))
    parts += [Text(f"{o.question.question} {note}", style="yellow") for o in outcomes for note in o.cut]
    at_odds = [(o.question.question, line) for o in outcomes for line in disagreements(o.memory)]
    parts += [Text(f"{question} {line}", style="dim") for question, line in at_odds]
    parts.append(Text("The pages mix fact and fiction on purpose; do not learn from them.", style="dim"))
    return Group(*parts)


def _nothing(questions: int) -> str:
    return f"; none for {questions} question{'s' * (questions != 1)}, about which no page is" if questions else ""
