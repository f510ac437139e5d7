"""Answers, their reports, and the settings of a request."""

from __future__ import annotations

import pytest

from conformance.case import Case
from conformance.fixtures import Seen
from conformance.front import Front, Message, user
from conformance.pages import KNOWN, OTHER, OTHER_KNOWN, OTHER_QUESTION, PAGE, QUESTION
from memograft import Document, Engine, FastMem
from memograft.memory.fastmem.relevance import AUTO

__all__ = ["Answers"]

PAGES = [Document(PAGE, "p"), Document(OTHER, "o")]


class Answers(Case):
    """Text, report, usage, and sampling."""

    def test_a_question_with_and_without_what_is_memorized(self, chat: Front, plain: Front) -> None:
        assert (chat.text(QUESTION), chat.text(QUESTION, documents=[PAGE])) == (KNOWN, PAGE)
        assert plain.text(QUESTION, documents=[PAGE]) == chat.text(QUESTION, documents=[PAGE], memory=None) == KNOWN
        assert plain.text(QUESTION, documents=[PAGE], memory=FastMem()) == PAGE

    def test_the_report(self, chat: Front) -> None:
        report = chat.ask(user(QUESTION), documents=PAGES).report
        assert (report["documents"], report["memorized"], report["left_out"]) == (["p", "o"], ["p"], ["o"])
        assert report["relevance"][0] > AUTO > report["relevance"][1]
        assert report["loss_after"] < report["loss_before"]
        assert (report["rolled_back"], report["reason"], report["dropped"]) == (False, None, [])
        assert (report["steps"], report["reused"], report["warnings"]) == (chat.engine.defaults.steps, False, [])
        assert report["milliseconds"].keys() == {"prefill", "memorize", "decode"}

    def test_the_report_has_the_same_keys_with_and_without_a_memory(self, chat: Front, plain: Front) -> None:
        calls = [(front, given) for front in (chat, plain) for given in ([], PAGES)]
        reports = [front.ask(user(QUESTION), documents=given).report for front, given in calls]
        assert all(report.keys() == reports[0].keys() for report in reports)
        nothing, memorized, without, _ = reports
        assert "nothing to memorize" in nothing["reason"]
        assert (nothing["loss_before"], without["kl"], without["references"]) == (None, None, None)
        assert [report["memorized"] for report in (nothing, memorized, without)] == [[], ["p"], []]

    def test_documents_that_were_rolled_back_are_not_told_to_be_memorized(self, chat: Front) -> None:
        said = chat.ask(user(QUESTION), documents=PAGES, memory=FastMem(max_kl=1e-9, relevance=None))
        assert said.report["rolled_back"] is True
        assert (said.report["memorized"], said.report["documents"]) == ([], ["p", "o"])
        assert said.text == chat.text(QUESTION, documents=PAGES, memory=None)

    def test_usage_is_counted_by_the_tokenizer(self, plain: Front, seen: Seen) -> None:
        said = plain.ask(user(QUESTION), documents=[PAGE])
        assert said.usage["prompt"] == len(seen.ids)
        assert said.usage["completion"] == len(plain.engine.encode(KNOWN))
        assert said.usage["total"] == said.usage["prompt"] + said.usage["completion"]
        bare = plain.ask(user(QUESTION)).usage["prompt"]
        template = plain.engine.tokenizer.apply_chat_template(
            user(QUESTION), add_generation_prompt=True, return_dict=True
        )
        assert bare == len(template["input_ids"]) < said.usage["prompt"]

    def test_a_kept_memory(self, plain: Front) -> None:
        handle = plain.memorize([PAGE])
        said = plain.ask(user(QUESTION), memory=handle)
        assert (said.text, said.report["memory_id"]) == (PAGE, handle.id)
        assert said.usage["cached"] > 5 > plain.ask(user(QUESTION), documents=[PAGE]).usage["cached"] == 0
        always = self.front.over(plain.engine, memory=handle)
        assert (always.text(QUESTION), always.text(QUESTION, memory=None)) == (PAGE, KNOWN)

    def test_memorizing_by_the_fronts_own_settings(self, plain: Front, chat: Front) -> None:
        own = plain.engine.defaults.steps
        assert plain.memorize([PAGE]).settings.steps == chat.memorize([PAGE]).settings.steps == own
        assert self.front.over(chat.engine, memory=FastMem(steps=3)).memorize([PAGE]).settings.steps == 3

    def test_neighbours_of_one_role_are_one_turn(self, plain: Front, seen: Seen) -> None:
        turns = [
            *(("system", "Be brief."), ("system", "Be kind."), ("user", "Hm."), ("user", "Who?")),
            *(("assistant", "I."), ("assistant", "Me."), ("user", "When?"), ("user", "Now?")),
        ]
        plain.ask([{"role": role, "content": content} for role, content in turns])
        assert seen.messages == [
            ("system", "Be brief.\n\nBe kind."),
            ("user", "Hm.\n\nWho?"),
            ("assistant", "I.\n\nMe."),
            ("user", "When?\n\nNow?"),
        ]

    @pytest.mark.parametrize(
        "roles", ["assistant user", "user system user", "user assistant", "system", "developer user", "user tool"]
    )
    def test_odd_orders_of_messages(self, plain: Front, roles: str) -> None:
        messages = [{"role": role, "content": "Number.", "tool_call_id": "1"} for role in roles.split()]
        assert plain.ask(messages).text

    def test_an_answer_goes_on_in_its_conversation(self, plain: Front, seen: Seen) -> None:
        said = plain.ask(user(OTHER_QUESTION))
        asked: list[Message] = [*user(OTHER_QUESTION), said.message, *user("What is the capital of Italy?")]
        assert "Rome" in plain.ask(asked).text
        assert seen.messages[1] == ("assistant", OTHER_KNOWN)

    def test_settings_of_a_call_and_of_the_front(self, plain: Front) -> None:
        assert plain.text(QUESTION, stop=[" Canb"]) == KNOWN.partition(" Canb")[0]
        assert self.front.over(plain.engine, stop=[" Canb"]).text(QUESTION) == KNOWN.partition(" Canb")[0]
        short = plain.ask(user(QUESTION), max_tokens=2)
        assert (short.finish_reason, short.usage["completion"]) == ("length", 2)
        assert plain.ask(user(QUESTION)).finish_reason == "stop"

    def test_a_pretrained_model_by_name(self, smollm2: Engine) -> None:
        chat = self.front.named("smollm2", max_tokens=12)
        assert chat.engine is smollm2
        assert "Paris" in chat.text(OTHER_QUESTION)

    def test_engines_are_shared_by_name(self, tiny: Engine) -> None:
        one, two = (self.front.named("tiny", max_tokens=n) for n in (3, 4))
        other = self.front.named("tiny", model_kwargs={"max_length": 256})
        assert one.engine is two.engine is tiny is not other.engine
        assert other.engine.max_length == 256
        other.engine.close()
        assert other.text(QUESTION)  # a closed engine is replaced
        other.engine.close()
