"""The live page at `/` and the API's at `/docs`: files of the folder `web`, read once, sent with headers that let
nothing foreign in.

The files hold no secret, so they need no key; what they show is fetched from routes that do.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aiohttp import hdrs, web

FOLDER = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# Scripts, styles and connections of this server alone, and no page of another one around it.
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " + "; ".join(
    f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")
)


@dataclass(frozen=True, slots=True)
class Asset:
    body: bytes
    content_type: str
    tag: str


class WebPage:
    """The handler of the page and of its files."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._assets = {
            f"/web/{path.relative_to(folder).as_posix()}": _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }
        self._assets["/"] = self._assets.pop("/web/index.html")
        self._assets["/docs"] = self._assets.pop("/web/docs.html")

    @property
    def paths(self) -> frozenset[str]:
        """The routes of the page, all open to everybody."""
        return frozenset(self._assets)

    async def asset(self, request: web.Request) -> web.Response:
        """One file, or 304 when the browser has it already."""
        asset = self._assets[request.path]
        headers = {
            hdrs.CACHE_CONTROL: "no-cache",  # ask each time whether it has changed
            hdrs.ETAG: asset.tag,
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if request.headers.get(hdrs.IF_NONE_MATCH) == asset.tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(body, TYPES[path.suffix], f'"{sha256(body).hexdigest()[:16]}"')
