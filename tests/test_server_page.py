"""The server's page in a real browser. An error in the browser's console, such as one of the CSP, fails a test."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from transformers import LogitsProcessor

from conformance.calling import trained_engine
from gates import until
from memograft import Engine, FastMem, LexicalEmbedder, Request, Sampling, page
from memograft.server import Keys, ServerSettings, add_key
from served import Served, served
from test_server_rows import cancelled, jobs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")

QUESTION = "What is the capital of Australia?"
LISBON = "The capital of Australia is Lisbon."
PAGES = [{"text": LISBON, "id": "Atlas of 2090"}, {"text": "Bergamot is a citrus fruit.", "id": "Fruits"}]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's sandbox does not run as root
    with sync_playwright() as playwright:
        args = [*sandbox, "--disable-dev-shm-usage"]  # /dev/shm is small in containers
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def expected() -> list[str]:
    """Errors that a test expects in the console: of the browser, about responses."""
    return []


@pytest.fixture
def tab(browser: Browser, expected: list[str]) -> Iterator[Page]:
    tab = browser.new_page()
    tab.set_default_timeout(20_000)
    said: list[str] = []
    hosts: set[str] = set()
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: hosts.add(re.sub(r":\d+.*", "", request.url)))
    yield tab
    tab.close()
    assert [re.sub(r" \(.*", "", text) for text in said] == expected
    assert hosts == {"http://127.0.0.1"}


@pytest.fixture(scope="module")
def server(tiny: Engine) -> Iterator[Served]:
    with served(tiny, ServerSettings(model="tiny", timeout=60), embedder=LexicalEmbedder(64)) as running:
        with running.http() as http:
            http.post("/v1/stores", json={"name": "docs"}).raise_for_status()
            http.post("/v1/stores/docs/documents", json={"documents": PAGES}).raise_for_status()
        yield running


def opened(tab: Page, server: Served, model: str = "tiny") -> Page:
    tab.goto(server.url)
    expect(tab.locator("#model")).to_contain_text(model)
    return tab


def fill(tab: Page, *documents: tuple[str, str], question: str = QUESTION) -> None:
    tab.get_by_label("Question").fill(question)
    for n, (title, text) in enumerate(documents):
        if n:
            tab.get_by_role("button", name="Add a document").click()
        tab.get_by_label("Title").nth(n).fill(title)
        tab.get_by_label("Text", exact=True).nth(n).fill(text)


def ask(tab: Page) -> None:
    tab.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.get_by_role("status")).to_contain_text("Answered.")


def side(tab: Page, name: str) -> Locator:
    return tab.get_by_role("article", name=name)


def answer(tab: Page, name: str) -> str:
    """The text of an answer, without the numbers of its citations."""
    return re.sub(r"\d+(?=\.| )", "", side(tab, name).locator(".answer").inner_text()).strip()


def test_plain_and_memorized_side_by_side(tab: Page, server: Served, tiny: Engine) -> None:
    memorized = tiny.answer(QUESTION, PAGES, memory=FastMem())
    report = memorized.memory
    assert report is not None
    opened(tab, server).get_by_role("button", name="Fill in an example").click()
    ask(tab)
    assert (answer(tab, "Plain"), answer(tab, "Memorized")) == (tiny.answer(QUESTION, PAGES).text, memorized.text)
    expect(tab.get_by_role("status")).to_have_text("Answered. Memorizing changed the answer.")
    assert side(tab, "Memorized").locator("mark").all_inner_texts() == [LISBON[:-1]]
    side(tab, "Memorized").get_by_role("link", name="document 1").click()
    assert tab.url.endswith("#document-1")
    first, second = tab.locator("#sources li").all()
    assert "Atlas of 2090" in first.inner_text()
    assert [text.split()[-1] for text in tab.locator(".relevance").all_inner_texts()] == [
        f"{value:.2f}" for value in report.relevance
    ]
    assert (first.locator(".tag").inner_text(), first.locator("mark").inner_text()) == ("memorized", LISBON[:-1])
    assert second.locator(".tag").inner_text() == "in the prompt; about something else"
    assert second.locator("mark").count() == 0
    told = tab.get_by_role("region", name="What was memorized")
    assert f"{report.loss_before:.2f} → {report.loss_after:.2f}" in told.inner_text()
    for which, losses in (("before", report.token_losses_before), ("after", report.token_losses_after)):
        tokens = tab.locator(f"#{which} span")
        assert "".join(tokens.all_text_contents()).strip() == LISBON
        assert [token.get_attribute("class") for token in tokens.all()] == [f"s{page.level(loss)}" for loss in losses]
    gains = [b - a for b, a in zip(report.token_losses_before, report.token_losses_after, strict=True)]
    shades = [token.get_attribute("class") for token in tab.locator("#gain span").all()]
    assert shades == [f"g{page.level(gain)}" for gain in gains]


def test_a_store_is_searched(tab: Page, server: Served) -> None:
    fill(opened(tab, server))
    tab.get_by_label("Store").select_option("docs")
    tab.get_by_label("Documents", exact=True).and_(tab.locator("#k")).fill("1")
    tab.get_by_label("Search by").select_option("words")
    ask(tab)
    assert answer(tab, "Memorized") == LISBON
    (found,) = tab.locator("#sources li").all()
    assert "Atlas of 2090" in found.inner_text()
    assert found.locator("mark").inner_text() == LISBON[:-1]


def test_without_documents_there_is_one_answer(tab: Page, server: Served, tiny: Engine) -> None:
    fill(opened(tab, server))
    tab.keyboard.press("Control+Enter")
    expect(tab.get_by_role("status")).to_have_text("Answered.")
    assert answer(tab, "Plain") == tiny.answer(QUESTION).text
    for gone in (tab.locator("#memorized"), tab.locator("#sources"), tab.locator("#report")):
        expect(gone).to_be_hidden()


def test_other_kinds_of_memory(tab: Page, server: Served) -> None:
    fill(opened(tab, server), ("Atlas", LISBON))
    tab.get_by_text("Options").click()
    tab.get_by_label("Also answer without memorizing").uncheck()
    tab.get_by_label("Memorize", exact=True).select_option("kept")
    ask(tab)
    expect(side(tab, "Plain")).to_be_hidden()
    expect(tab.locator("#report .numbers")).to_contain_text("Kept")
    expect(tab.locator("#losses")).to_be_hidden()


def test_markup_stays_text(tab: Page, tiny: Engine) -> None:
    """In documents, titles, and the model's name, which the errors of the server repeat."""
    with served(tiny, ServerSettings(model=EVIL, timeout=60)) as server:
        fill(opened(tab, server, EVIL), (EVIL, f"{EVIL} {LISBON}"), (f"2 {EVIL}", "x"))
        ask(tab)
        assert tab.locator("#sources .text").first.inner_text() == f"{EVIL} {LISBON}"
        assert tab.locator("#sources b").all_inner_texts() == [EVIL, f"2 {EVIL}"]
        assert tab.locator("main img, main script, main b script").count() == 0
        assert tab.title() == "Memograft"


def test_markup_in_an_answer_stays_text(tab: Page) -> None:
    """The model has learned to answer with it."""
    with (
        trained_engine([([{"role": "user", "content": "Say it."}], None, EVIL)]) as engine,
        served(engine, ServerSettings(model="m", timeout=60)) as server,
    ):
        fill(opened(tab, server, "m"), question="Say it.")
        ask(tab)
        assert side(tab, "Plain").locator(".answer").inner_text() == EVIL
        assert tab.locator("main img, main script").count() == 0
        assert tab.title() == "Memograft"


def test_a_key_is_refused_and_accepted(tab: Page, tiny: Engine, tmp_path: Path, expected: list[str]) -> None:
    key = add_key(tmp_path / "keys.json", "alice")
    with served(tiny, ServerSettings(model="tiny"), keys=Keys(tmp_path / "keys.json")) as server:
        tab.goto(server.url)
        field = tab.get_by_label("Key of this server")
        expect(field).to_be_focused()
        field.fill("mg-wrong")
        field.press("Enter")
        expect(tab.get_by_role("alert")).to_contain_text("The server does not accept this key.")
        expected.append("Failed to load resource: the server responded with a status of 401")
        assert tab.evaluate("() => sessionStorage.length") == 0
        field.fill(f" {key} ")
        field.press("Enter")
        expect(tab.locator("#model")).to_contain_text("tiny")
        expect(field).to_be_hidden()
        expect(tab.locator("#problem")).to_be_hidden()
        fill(tab)
        ask(tab)
        tab.reload()
        expect(tab.locator("#model")).to_contain_text("tiny")
        assert tab.evaluate("() => [localStorage.length, document.cookie, location.href]") == [0, "", f"{server.url}/"]


def test_errors_are_told(tab: Page, tiny: Engine, expected: list[str]) -> None:
    with served(tiny, ServerSettings(model="tiny")) as server:
        fill(opened(tab, server), ("Atlas", LISBON))
        tab.get_by_text("Options").click()
        tab.get_by_label("Longest answer, in tokens").fill("100000")
        tab.get_by_role("button", name="Ask", exact=True).click()
        for name in ("Plain", "Memorized"):
            expect(side(tab, name).get_by_role("alert")).to_contain_text("`max_tokens` may be 512 for this model")
        expected += ["Failed to load resource: the server responded with a status of 400"] * 2
        tab.get_by_label("Longest answer, in tokens").fill("20")
        ask(tab)
        expect(side(tab, "Plain").locator(".problem")).to_be_hidden()
    tab.get_by_role("button", name="Ask", exact=True).click()
    expect(side(tab, "Plain").get_by_role("alert")).to_have_text("The server cannot be reached. Is it still running?")
    expected += ["Failed to load resource: net::ERR_CONNECTION_REFUSED"] * 2


def test_files_become_documents(tab: Page, server: Served, tmp_path: Path) -> None:
    (tmp_path / "atlas.txt").write_text(LISBON)
    (tmp_path / "photo.txt").write_bytes(b"\x89PNG\x00\xff")
    opened(tab, server).get_by_label("Choose files").set_input_files([tmp_path / "atlas.txt", tmp_path / "photo.txt"])
    expect(tab.get_by_role("alert")).to_contain_text("can be read here, not photo.txt")
    (item,) = tab.locator(".given").all()
    assert (item.get_by_label("Title").input_value(), item.get_by_label("Text").input_value()) == ("atlas.txt", LISBON)
    dropped = tab.evaluate_handle(
        "() => { const d = new DataTransfer(); d.items.add(new File(['# Rocks'], 'rocks.md')); return d; }"
    )
    tab.dispatch_event("#documents", "drop", {"dataTransfer": dropped})
    expect(tab.locator(".given")).to_have_count(2)
    assert tab.get_by_label("Title").nth(1).input_value() == "rocks.md"
    expect(tab.get_by_role("alert")).to_have_count(0)
    tab.get_by_role("button", name="Remove").first.click()
    expect(tab.locator(".given")).to_have_count(1)


class Turnstile(LogitsProcessor):
    """Lets one token of its request, and with it the engine's loop, pass for each `passes.release()`."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert self.passes.acquire(timeout=60)
        return scores


@pytest.mark.parametrize("by", ["button", "key"])
def test_stopping_frees_the_row(tab: Page, make_engine: Any, by: str) -> None:
    """Tokens are shown while the answer is not at its end, and Stop ends it there."""
    engine, turnstile = make_engine(max_batch=4), Turnstile()
    stream = engine.stream(Request("Hold.", sampling=Sampling(230), processors=[turnstile]))
    reader = threading.Thread(target=lambda: [None for _ in stream])
    reader.start()
    try:
        with served(engine, ServerSettings(model="m", timeout=60)) as server:
            fill(opened(tab, server, "m"), question="Who wrote it?")
            tab.get_by_role("button", name="Ask", exact=True).click()
            until(lambda: engine.load.waiting + engine.load.running == 2)
            shown = side(tab, "Plain").locator(".answer")
            steps = 0
            while not shown.inner_text():
                turnstile.passes.release()
                steps += 1
                assert steps < 200
            (job,) = jobs(engine)
            assert not job.done
            expect(shown).to_have_attribute("aria-busy", "true")
            if by == "button":
                tab.get_by_role("button", name="Stop").click()
            else:
                tab.keyboard.press("Escape")
            until(lambda: cancelled(job))
            expect(tab.get_by_role("status")).to_have_text("Stopped.")
            expect(tab.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
            turnstile.passes.release(230)
            until(lambda: engine.load.running + engine.load.waiting <= 1)
    finally:
        turnstile.passes.release(230)
        reader.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_everything_has_a_name(tab: Page, server: Served, scheme: Any) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 700})
    fill(opened(tab, server), ("Atlas", LISBON), ("long" * 40, "x" * 400))
    tab.get_by_text("Options").click()
    ask(tab)
    assert tab.evaluate("() => document.documentElement.scrollWidth") == 360
    names = "e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim() || e.textContent.trim()"
    fields = tab.locator("button, input, select, textarea, a, meter").all()
    assert all(field.evaluate(names) for field in fields)
    background = tab.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
