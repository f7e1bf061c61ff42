"""The live page in a real browser, over the real ring: it shows the engine at work, and lets one talk to it."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from benchmark.server import Server
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import client

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# As root in a container it has no sandbox of its own; and it must not look for anything outside.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SOMETHING = re.compile("[1-9]")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def faults(context: BrowserContext) -> list[str]:
    """What the page complains of in the browser's console."""
    found: list[str] = []
    context.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    context.on("weberror", lambda error: found.append(str(error.error)))
    return found


@pytest.fixture
def page(context: BrowserContext, mock_server: Server, faults: list[str]) -> Page:
    page = context.new_page()
    page.goto(mock_server.url)
    expect(page.locator("#status")).to_have_text("ready")
    return page


def test_a_chat_streams_and_says_what_it_cost(page: Page, faults: list[str]) -> None:
    page.fill("#question", "hello")
    page.press("#question", "Enter")
    answer = page.locator(".turn.assistant")
    expect(answer.locator(".text")).to_have_text("".join(WORDS).strip())
    expect(answer.locator(".cost")).to_contain_text("71 out")
    page.fill("#question", "and again")
    page.click("#send")
    expect(page.locator(".turn.assistant .cost").nth(1)).to_contain_text("71 out")
    assert faults == []


def test_a_refused_chat_shows_the_server_s_own_words(page: Page) -> None:
    page.fill("#max-tokens", "1000000000")
    page.fill("#question", "hello")
    page.click("#send")
    expect(page.locator(".turn.assistant .fault")).to_contain_text("max_tokens")


def test_the_panels_move_under_load(page: Page, mock_server: Server, faults: list[str]) -> None:
    api = client(mock_server)
    stop = threading.Event()

    def load(number: int) -> None:
        while not stop.is_set():
            # Whoever shares a prefix shows up as cached and shared blocks.
            prompt = [*range(200), number]
            api.completions.create(model="mock", prompt=prompt, max_tokens=400, extra_body={"ignore_eos": True})

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(load, number)
        try:
            expect(page.locator("#tile-throughput")).to_have_text(SOMETHING)
            expect(page.locator("#tile-running")).to_have_text(SOMETHING)
            expect(page.locator("#batch-caption")).to_contain_text("decode")
            expect(page.locator("#blocks-caption")).to_contain_text(re.compile(r"^[1-9]\d* in use \([1-9]\d* shared"))
            expect(page.locator("#tile-cached")).to_have_text(re.compile(r"^[1-9]\d* %"))
            expect(page.locator("#ring .way.busy").first).to_be_attached()
            expect(page.locator("#plot-throughput canvas")).to_be_visible()
            page.locator("#waterfall button").first.hover()  # from now on the list holds still
            name = page.locator("#waterfall button:hover .name").inner_text()
            page.mouse.down()
            expect(page.locator("#newer")).to_have_text(SOMETHING)
            page.mouse.up()
            expect(page.locator("#request")).to_contain_text(name)
            expect(page.locator("#request")).to_contain_text("400")
            page.mouse.move(0, 0)
            expect(page.locator("#newer")).to_have_text("")
            expect(page.locator("#waterfall .name").first).not_to_have_text(name)
        finally:
            stop.set()
    assert faults == []


def test_every_process_of_the_ring_is_shown(page: Page) -> None:
    for name in ("gateway", "tokenizer", "scheduler", "model", "detokenizer"):
        expect(page.locator("#ring text", has_text=name).first).to_be_visible()
    expect(page.locator("#ring .process.ready")).to_have_count(5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, mock_server: Server, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, is_mobile=True)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(mock_server.url)
    expect(page.locator("#status")).to_have_text("ready")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.removeprefix("rgb(").removesuffix(")").split(",")) / 3
    assert (brightness < 64) == (scheme == "dark")
    context.close()


def test_with_a_key_the_page_asks_for_it(browser: Browser) -> None:
    with Server(model="mock", api_key="secret") as server:
        page = browser.new_page()
        page.goto(server.url)
        dialog = page.locator("#key-dialog")
        for key in ("wrong", "secret"):
            expect(dialog).to_be_visible()
            page.fill("#key", key)
            dialog.locator("button").click()
        expect(page.locator("#status")).to_have_text("ready")
        expect(dialog).to_be_hidden()
        page.fill("#question", "hello")
        page.click("#send")
        expect(page.locator(".turn.assistant .cost")).to_contain_text("71 out")
        page.close()
