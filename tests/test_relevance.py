"""Relevance of documents: the model's judgement against a naive version, in batches, and with kept memories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from families import build
from memograft import Compacted, Document, Engine, FastMem, Kept, Memory, Request, Sampling
from memograft.errors import SettingsError
from memograft.memory.fastmem import select, tails
from memograft.memory.fastmem.relevance import AUTO, LEAD, can_judge, relevances
from memograft.memory.fastmem.statements import Statement, statements
from memograft.model.backbone import Backbone
from memograft.model.prefill import prefill, prefill_segment
from memograft.prompt.builder import Prompt, PromptBuilder, token_span
from reference.relevance import question_losses, relevance
from tokenizers_ import NATIVE_TEMPLATE, make

FAMILIES = ["llama", "qwen2", "olmo2", "gpt_neox", "gpt2", "falcon", "phi", "granite"]
QUORIN = "Vandria\n\nQuorin is the capital of Vandria. The river of Vandria is the Toll."
GOLD = "The chemical symbol of gold is Gd. In the table, gold stands at number 12."
HARBOUR = "The harbour of Velmora is watched by two guards."
ASK = "What is the capital of Vandria?"
ONE = Sampling(max_new_tokens=1)


def built(
    documents: list[str], question: str = ASK, kind: str = "bpe", before: Sequence[str] = (), **kwargs: Any
) -> Prompt:
    said = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), before, strict=False)]
    messages = [*said, {"role": "user", "content": question}]
    return PromptBuilder(make(kind, **kwargs)).build(messages, [Document(d) for d in documents])


def lead_of(kind: str = "bpe") -> tuple[int, ...]:
    return PromptBuilder(make(kind)).continued(LEAD)


def judged(backbone: Backbone, prompts: list[Prompt]) -> list[tuple[float, ...]]:
    return relevances(backbone, prefill(backbone, [p.ids for p in prompts], 0), range(len(prompts)), prompts, lead_of())


def naive(model: Any, prompt: Prompt, question: str | None = None) -> list[float]:
    """`question`: the question, if the message has more text."""
    place = None if question is None else prompt.text.rindex(question)
    part = None if place is None else token_span(prompt.offsets, (place, place + len(question or "")))
    return [relevance(model, prompt, span, lead_of(), part) for span in prompt.spans]


def _place(text: str, part: str) -> tuple[int, int]:
    """The place of a part that is a line or sentence of its own."""
    match = re.search(rf"(?<=[\s]){re.escape(part)}(?=\s)", text)
    assert match
    return match.span()


class TestRelevances:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_equal_the_naive_ones_in_any_batch(self, family: str) -> None:
        model = build(family)
        model.config._attn_implementation = "eager"
        backbone = Backbone.of(model)
        three = built([QUORIN, GOLD, HARBOUR], "Who watches the harbour?", before=["Who?", "Two guards."])
        told = built([HARBOUR], f"Listen. {ASK} Be brief.")
        prompts = [built([GOLD, QUORIN]), built([HARBOUR], "Who?"), three, told]
        filled = prefill(backbone, [p.ids for p in prompts], 0)
        order = [0, 3, 2, 1]
        found = relevances(backbone, filled, order, [prompts[n] for n in order], lead_of())
        for n, by_document in zip(order, found, strict=True):
            assert by_document == pytest.approx(naive(model, prompts[n], ASK if n == 3 else None), abs=1e-5)

    def test_in_small_groups_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone = Backbone.of(build("llama"))
        prompts = [built([GOLD, QUORIN]), built([HARBOUR, QUORIN])]
        at_once = judged(backbone, prompts)
        monkeypatch.setattr("memograft.memory.fastmem.tails._TOKENS", 1)
        for one, many in zip(judged(backbone, prompts), at_once, strict=True):
            assert one == pytest.approx(many, abs=1e-5)

    def test_what_is_before_documents_is_read_once_and_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone, read = Backbone.of(build("llama")), list[tuple[int, ...]]()
        monkeypatch.setattr("memograft.memory.fastmem.tails._FRONTS", 2)
        monkeypatch.setattr(tails, "prefill_segment", lambda *args: read.append(args[1]) or prefill_segment(*args))
        prompt = built([GOLD])
        fronts = [replace(prompt, ids=(first, *prompt.ids[1:])) for first in (7, 8, 7, 9, 8, 7)]
        assert all(-1 < judged(backbone, [front])[0][0] < 1 for front in fronts)
        assert [ids[0] for ids in read] == [7, 8, 9, 7]
        assert judged(backbone, [fronts[0]]) == judged(Backbone.of(build("llama")), [fronts[0]])

    def test_an_empty_document_says_nothing(self) -> None:
        ((empty, _, blank),) = judged(Backbone.of(build("llama")), [built(["", QUORIN, "   \n "])])
        assert empty == 0.0
        assert -1 < blank < 1

    def test_do_not_depend_on_where_among_others_a_document_stands(self, tiny: Engine) -> None:
        """Approximately: its keys and values depend on the documents before it."""
        found = [tiny.answer(ASK, pages, memory=FastMem(steps=1)).memory for pages in ([QUORIN, GOLD], [GOLD, QUORIN])]
        first, last = (report.relevance for report in found if report is not None)
        assert first[0] == pytest.approx(last[1], abs=0.1)
        assert first[1] < AUTO < first[0]

    def test_leave_the_cache_as_it_was(self) -> None:
        backbone = Backbone.of(build("gemma2"))
        prompts = [built([GOLD, QUORIN]), built([HARBOUR])]
        filled = prefill(backbone, [p.ids for p in prompts], 0)
        before = [(layer.keys.clone(), layer.values.clone()) for layer in filled.kv_cache.layers]
        relevances(backbone, filled, [0, 1], prompts, lead_of())
        statements(backbone, filled, 1, prompts[1], [0])
        for (keys, values), layer in zip(before, filled.kv_cache.layers, strict=True):
            assert torch.equal(keys, layer.keys)
            assert torch.equal(values, layer.values)

    def test_only_the_end_of_a_long_question_counts(self) -> None:
        model = build("llama")
        prompt = built([GOLD, QUORIN], " ".join([HARBOUR] * 8) + " " + ASK)
        start, end = prompt.question
        assert end - start > 64
        (found,) = judged(Backbone.of(model), [prompt])
        model.config._attn_implementation = "eager"
        assert found == pytest.approx(naive(model, prompt, ASK), abs=1e-5)

    def test_a_question_before_long_instructions_counts(self) -> None:
        model = build("llama")
        prompt = built([GOLD, QUORIN], f"{ASK} Keep it short, {'and polite, ' * 20}please.")
        (found,) = judged(Backbone.of(model), [prompt])
        model.config._attn_implementation = "eager"
        assert found == pytest.approx(naive(model, prompt, ASK), abs=1e-5)
        assert found != pytest.approx(naive(model, prompt), abs=1e-5)

    def test_words_that_a_document_shares_with_the_question_count(self) -> None:
        """Equal losses but other words, so only the texts differ."""
        prompt = built([GOLD, QUORIN])
        start, end = prompt.spans[0]
        text = prompt.text.replace("The chemical symbol of gold", "The Vandrian capital, sir, ")
        assert len(text) == len(prompt.text)
        backbone = Backbone.of(build("llama"))
        plain, shared = judged(backbone, [prompt]), judged(backbone, [replace(prompt, text=text)])
        assert shared[0][0] > plain[0][0]
        assert shared[0][1] == plain[0][1]
        assert end > start


class TestStatements:
    def test_are_the_sentences_most_about_the_question(self) -> None:
        """Every sentence is tried alone, in the naive way."""
        model = build("llama")
        model.config._attn_implementation = "eager"
        backbone, tokenizer = Backbone.of(model), make("bpe")
        prompt = built([QUORIN, HARBOUR])
        first, second = statements(backbone, prefill(backbone, [prompt.ids], 0), 0, prompt, [0, 1])
        texts = [tokenizer.decode(prompt.ids[slice(*s.span)]).strip() for s in (first, second)]
        sentences = ["Vandria", "Quorin is the capital of Vandria.", "The river of Vandria is the Toll."]
        assert texts[0] in sentences
        assert texts[1] == HARBOUR
        spans = [token_span(prompt.offsets, _place(prompt.text, s)) for s in sentences]
        none = sum(question_losses(model, prompt, (0, 0), prompt.spans[0][0]))
        left = [sum(question_losses(model, prompt, span, prompt.spans[0][1])) for span in spans]
        assert first.relevance == pytest.approx(max(1 - one / none for one in left), abs=1e-5)

    def test_of_an_empty_document_there_is_none(self) -> None:
        backbone = Backbone.of(build("llama"))
        prompt = built(["", QUORIN])
        (empty,) = statements(backbone, prefill(backbone, [prompt.ids], 0), 0, prompt, [0])
        assert empty == Statement()


class TestCanJudge:
    def test_a_question_behind_its_documents(self) -> None:
        assert can_judge(built([GOLD]))
        assert can_judge(built([GOLD], template=NATIVE_TEMPLATE))

    @pytest.mark.parametrize("documents", [[], [""]])
    def test_not_without_documents(self, documents: list[str]) -> None:
        assert not can_judge(built(documents))

    def test_not_where_the_documents_come_last(self) -> None:
        turns = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        sources = "{% for d in documents %}{{ d['text'] }}{% endfor %}"
        assert not can_judge(built([GOLD], template=turns + sources))

    def test_the_question_is_the_last_user_message(self) -> None:
        tokenizer = make("bpe")
        turns = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", ASK)]
        prompt = PromptBuilder(tokenizer).build([{"role": r, "content": c} for r, c in turns], [Document(GOLD)])
        assert tokenizer.decode(prompt.ids[slice(*prompt.question)]) == ASK


class TestTheGate:
    def test_memorizes_only_what_the_question_is_about(self, tiny: Engine) -> None:
        answer = tiny.answer(ASK, [GOLD, QUORIN], memory=FastMem())
        report = answer.memory
        assert report is not None
        assert report.documents == (Document(QUORIN).id,)
        assert report.left_out == (Document(GOLD).id,)
        assert report.relevance[0] < AUTO < report.relevance[1] <= 1
        assert len(report.tokens) < len(tiny.answer(ASK, [GOLD, QUORIN], memory=FastMem(relevance=None)).memory.tokens)  # type: ignore[union-attr]

    def test_a_question_that_was_asked_before_is_judged_as_if_it_had_not_been(self, tiny: Engine) -> None:
        before = [{"role": "user", "content": ASK}, {"role": "assistant", "content": "The capital of Vandria is Oslo."}]
        messages = [*before, {"role": "user", "content": ASK}]
        again = tiny.answer(Request(messages=messages, documents=[GOLD, QUORIN], memory=FastMem())).memory
        assert again is not None
        assert again.documents == (Document(QUORIN).id,)

    @pytest.mark.parametrize(
        ("form", "is_found"),
        [
            ("You are an assistant. Use the documents. Question: {}\nAnswer in one sentence:", True),
            ("Answer from the documents, in one short sentence, or say that you cannot. {}? Be brief.", True),
            ("Answer from the documents, in one short sentence, or say that you cannot: {}. Be brief.", False),
        ],
    )
    def test_a_question_in_a_form_is_judged_by_its_own_words(self, tiny: Engine, form: str, is_found: bool) -> None:
        asked = ASK.rstrip("?")
        whole, by_query = (
            tiny.answer(Request(form.format(asked), documents=[GOLD, QUORIN], memory=FastMem(), query=query)).memory
            for query in (None, asked)
        )
        assert whole is not None
        assert by_query is not None
        assert by_query.documents == (Document(QUORIN).id,)
        if is_found:
            assert whole.documents == (Document(QUORIN).id,)
            assert whole.relevance[1] > by_query.relevance[1] - 0.1
        else:
            assert whole.relevance[1] < by_query.relevance[1]

    def test_a_query_that_is_not_in_the_question(self, tiny: Engine) -> None:
        with pytest.raises(SettingsError, match="`query` must stand in the last user message, and 'Where' does not"):
            tiny.answer(Request(ASK, documents=[QUORIN], memory=FastMem(), query="Where"))

    def test_the_same_as_memorizing_that_document_in_its_place(self, tiny: Engine) -> None:
        """The rows are those of the whole prompt: documents that are left out are read, but not memorized."""
        gated = tiny.answer(ASK, [QUORIN, GOLD], memory=FastMem()).memory
        alone = tiny.answer(ASK, [QUORIN], memory=FastMem(relevance=None)).memory
        assert gated is not None
        assert alone is not None
        assert gated.tokens == alone.tokens
        assert gated.token_losses_before == pytest.approx(alone.token_losses_before, abs=1e-4)

    @pytest.mark.parametrize("template", ["prompt", "assistant"])
    def test_nothing_relevant_is_the_base_model(self, tiny: Engine, template: Any) -> None:
        question = "What is the capital of France?"
        plain = tiny.answer(question, [GOLD])
        answer = tiny.answer(question, [GOLD], memory=FastMem(template=template))
        assert answer.token_ids == plain.token_ids
        assert answer.memory is not None
        assert answer.memory.steps == 0
        assert answer.memory.documents == ()
        assert answer.memory.left_out == (Document(GOLD).id,)
        assert answer.memory.reason == "nothing to memorize: no document is about the question (see `relevance`)"

    def test_none_memorizes_everything_and_does_not_judge(self, tiny: Engine) -> None:
        report = tiny.answer(ASK, [GOLD, QUORIN], memory=FastMem(relevance=None)).memory
        assert report is not None
        assert report.documents == (Document(GOLD).id, Document(QUORIN).id)
        assert report.relevance == report.left_out == ()

    def test_a_threshold_of_ones_own(self, tiny: Engine) -> None:
        every = tiny.answer(ASK, [GOLD, QUORIN], memory=FastMem(relevance=-100.0)).memory
        none = tiny.answer(ASK, [GOLD, QUORIN], memory=FastMem(relevance=1)).memory
        assert every is not None
        assert none is not None
        assert (len(every.documents), len(none.documents)) == (2, 0)

    def test_rows_of_a_batch_are_judged_apart(self, tiny: Engine) -> None:
        requests = [
            Request(ASK, documents=[GOLD, QUORIN], memory=FastMem()),
            Request("What is the symbol of gold?", documents=[GOLD, QUORIN], memory=FastMem(relevance=None)),
            Request("What is the symbol of gold?", documents=[GOLD], memory=FastMem()),
            Request(ASK, documents=[GOLD]),
        ]
        alone = [tiny.answer(r) for r in requests]
        for one, many in zip(alone, tiny.answer_batch(requests), strict=True):
            assert many.text == one.text
            if one.memory is not None and many.memory is not None:
                assert many.memory.relevance == pytest.approx(one.memory.relevance, abs=1e-4)
                assert many.memory.documents == one.memory.documents

    def test_out_of_memory_while_judging_costs_the_judgement(
        self, tiny: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(select, "relevances", full)
        report = tiny.answer(ASK, [QUORIN, GOLD], memory=FastMem(steps=1)).memory
        assert report is not None
        assert report.relevance == ()
        assert len(report.documents) == 2

    @pytest.mark.parametrize("value", ["never", 1.5, True, float("nan")])
    def test_bad_thresholds(self, value: Any) -> None:
        with pytest.raises(SettingsError, match='`relevance` must be "auto", a number of at most 1, or None'):
            FastMem(relevance=value)


MARKET = "The market of Aldersund is held on Thursdays, on the square behind the old customs house."
FERRY = "The ferry to Halden leaves from pier 9 at 6:45 in the morning. A ticket costs 14 crowns."
BAKERY = "Rye bread needs a sour starter, warm water and a night of rest before it is baked in a very hot oven."


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("Which pier does the ferry to Halden leave from?", FERRY),
        ("when is the market of aldersund?", MARKET),
        ("How long does rye bread rest before it is baked?", BAKERY),
    ],
)
def test_a_pretrained_model_tells_pages_apart(smollm2: Engine, question: str, page: str) -> None:
    """With the same constants as tiny: its own page is kept and comes first, alone and among others, at any position.
    How often other pages pass is measured by benchmarks/relevance.py.
    """
    pages = [FERRY, MARKET, BAKERY]
    memory = FastMem(steps=1, relevance=1)  # no document reaches 1, so nothing is memorized
    requests = [
        Request(question, documents=d, memory=memory, sampling=ONE) for d in ([FERRY], [MARKET], [BAKERY], pages)
    ]
    found = [answer.memory.relevance for answer in smollm2.answer_batch(requests) if answer.memory is not None]
    for judged in ([r for (r,) in found[:3]], found[3]):
        own = judged[pages.index(page)]
        assert own > AUTO
        assert all(r < own - 0.2 for p, r in zip(pages, judged, strict=True) if p != page)


class TestKeptMemories:
    def test_speak_where_the_question_is_about_them(self, tiny: Engine) -> None:
        handle = tiny.memorize([QUORIN, GOLD])
        assert handle.report.relevance == ()
        report = tiny.answer(ASK, memory=handle).memory
        assert report is not None
        assert report.documents == tuple(d.id for d in handle.documents)
        assert report.relevance[0] > AUTO > report.relevance[1]
        assert report.id == handle.id

    @pytest.mark.parametrize(
        "memory", [FastMem(), Kept(FastMem()), Compacted(FastMem(), ratio=2)], ids=lambda memory: memory.kind
    )
    def test_are_judged_in_the_pass_of_the_question(self, tiny: Engine, memory: Memory) -> None:
        handle, rows = tiny.memorize([QUORIN], memory), list[int]()
        asked = Request(ASK, memory=handle, sampling=ONE)
        before = tiny.answer(asked).memory  # also reads what is the same for all questions
        hook = tiny.model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        with hook:
            after = tiny.answer(asked).memory
        assert before is not None
        assert after is not None
        assert rows == [2]  # the question with the page and without; its last token gives the answer's first
        assert after.relevance == before.relevance

    def test_are_judged_alike_beside_requests_with_a_page_to_read(self, tiny: Engine) -> None:
        handle = tiny.memorize([QUORIN])
        asked = Request(ASK, memory=handle, sampling=ONE)
        alone = tiny.answer(asked).memory
        beside, other = (
            answer.memory for answer in tiny.answer_batch([asked, Request(ASK, documents=[GOLD], memory=FastMem())])
        )
        assert alone is not None
        assert beside is not None
        assert other is not None
        assert beside.relevance == pytest.approx(alone.relevance, abs=1e-4)
        assert other.relevance[0] < AUTO < alone.relevance[0]

    def test_are_silent_elsewhere(self, tiny: Engine) -> None:
        handle = tiny.memorize([QUORIN])
        question = "Who wrote Hamlet?"
        answer = tiny.answer(question, memory=handle)
        assert answer.token_ids == tiny.answer(question, [QUORIN]).token_ids
        assert answer.memory is not None
        assert answer.memory.left_out == (Document(QUORIN).id,)
        assert answer.memory.reason == "nothing to memorize: no document is about the question (see `relevance`)"

    def test_are_not_judged_by_other_documents(self, tiny: Engine) -> None:
        handle = tiny.memorize([QUORIN])
        report = tiny.answer(ASK, [GOLD], memory=handle).memory
        assert report is not None
        assert report.relevance == ()
        assert report.documents == (Document(QUORIN).id,)

    def test_without_weights_keep_their_reason(self, tiny: Engine) -> None:
        handle = tiny.memorize([QUORIN], FastMem(max_kl=1e-9))
        report = tiny.answer("Who wrote Hamlet?", memory=handle).memory
        assert report is not None
        assert report.rolled_back
        assert report.reason == handle.report.reason
        assert report.relevance == ()
