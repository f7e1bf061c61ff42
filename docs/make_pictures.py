"""The pictures of the live page in the docs: a browser looks at a mock server under load.

    python docs/make_pictures.py [FOLDER]

Needs the dev extra and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from playwright.sync_api import Browser, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.server import Server

STREAMS = 14
WATCHED_MS = 40_000  # so that the curves have something to show
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def load(url: str, number: int, stop: threading.Event) -> None:
    """One client that asks again and again: a prefix that all share, then words of its own."""
    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    turn = 0
    while not stop.is_set():
        turn += 1
        prompt = [*range(640), *(number * 31 + turn * 17 + word for word in range(100 + 60 * number))]
        api.completions.create(
            model="mock", prompt=prompt, max_tokens=80 + 25 * number, extra_body={"ignore_eos": True}, timeout=60
        )


def take(browser: Browser, url: str, file: Path, width: int, height: int, scheme: str) -> None:
    """Open the page, chat, look for a while, take the picture."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=1,
    )
    page = context.new_page()
    page.goto(url)
    page.fill("#question", "What happens to my words?")
    page.click("#send")
    expect(page.locator(".turn.assistant .cost")).to_contain_text("out", timeout=60_000)
    page.wait_for_timeout(WATCHED_MS)
    page.locator("#waterfall button").nth(2).click()
    page.evaluate("scrollTo(0, 0)")  # the click has scrolled to its row
    page.screenshot(path=file)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the live page for the docs.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "images")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with (
        Server(model="mock", mock_profile="gpu", num_gpu_blocks_override=2048) as server,
        ThreadPoolExecutor(STREAMS) as pool,
        sync_playwright() as playwright,
    ):
        for number in range(STREAMS):
            pool.submit(load, server.url, number, stop)
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            take(browser, server.url, folder / "live.png", 1440, 1640, "light")
            take(browser, server.url, folder / "live-phone-dark.png", 390, 844, "dark")
        finally:
            stop.set()


if __name__ == "__main__":
    main()
