"""The live page's files: open to everybody, complete, and of this server alone."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest

from gateway.web_page import FOLDER, WebPage
from tests.gateway.scripted_ring import ScriptedRing

OWN_FILES = [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and path.parent.name != "vendor"]


@pytest.mark.asyncio
async def test_the_page_and_all_that_it_names_are_there(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.get("/") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        html = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    names = re.findall(r'(?:src|href)="(web/[^"]+)"', html)
    modules = [f"web/{name}" for path in FOLDER.glob("*.js") for name in re.findall(r'"\./(.+\.js)"', path.read_text())]
    assert {"web/main.js", "web/style.css", "web/api.js"} <= {*names, *modules}
    for name in {*names, *modules}:
        async with http.get(f"/{name}") as response:
            assert response.status == 200, name


@pytest.mark.asyncio
async def test_a_browser_that_has_a_file_is_not_sent_it_again(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.get("/web/main.js") as response:
        tag = response.headers["ETag"]
        assert response.content_type == "text/javascript"
    async with http.get("/web/main.js", headers={"If-None-Match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")
    async with http.get("/web/main.js", headers={"If-None-Match": '"older"'}) as response:
        assert response.status == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/web/", "/web/nothing.js", "/web/../app.py", "/web/%2e%2e/app.py"])
async def test_nothing_else_is_served(ring: ScriptedRing, http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert response.status == 404


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_no_file_reaches_for_another_host_or_writes_html(path: Path) -> None:
    source = path.read_text().replace("http://www.w3.org/", "")
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]", source)
    for risk in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "onclick="):
        assert risk not in source


def test_every_path_of_the_page_is_open_and_no_other_one_is() -> None:
    assert all(path in ("/", "/docs") or path.startswith("/web/") for path in WebPage().paths)
