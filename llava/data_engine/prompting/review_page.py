"""A local page where a person marks what is wrong with questions. It serves this machine only.

The address holds a token that other sites and other users cannot guess, and requests under another host name
are refused (DNS rebinding). Each verdict is on disk before the page goes on.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llava.data_engine.prompting.trial import Item
from llava.data_engine.prompting.verdicts import TAGS, JudgedItem, make_verdict
from llava.errors import DataError, SettingsError
from llava.image_reading import image_path, open_image
from llava.schema import JsonObject

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
PERSON = "person"
_PAGE = Path(__file__).parent / "page"
_LONGEST_BODY = 10_000


class ReviewPage:
    """The page of some items.

    Attributes:
        token: What its address holds.
    """

    def __init__(
        self, items: Sequence[Item], image_root: Path, save: Callable[[JudgedItem], None], *, title: str
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._items = {item.id: item for item in items}
        self._image_root, self._save, self._title = image_root, save, title
        self._saved: dict[str, JudgedItem] = {}
        self._finish: Callable[[], None] = lambda: None

    def app(self) -> Starlette:
        """Return the application.

        Raises:
            SettingsError: A package is missing.
        """
        try:
            from starlette.applications import Starlette
            from starlette.middleware import Middleware
            from starlette.middleware.trustedhost import TrustedHostMiddleware
            from starlette.routing import Route
        except ImportError as error:
            raise _missing(error) from error
        base = f"/{self.token}"
        return Starlette(
            routes=[
                Route(f"{base}/", self._show),
                Route(f"{base}/review.js", self._script),
                Route(f"{base}/review.css", self._style),
                Route(f"{base}/image/{{item}}", self._image),
                Route(f"{base}/verdict", self._verdict, methods=["POST"]),
                Route(f"{base}/finish", self._end, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )

    def serve(self, port: int, announce: Callable[[str], None]) -> None:
        """Serve the page until the person ends the review.

        Args:
            port: 0 takes a free one.
            announce: Is told the page's address.

        Raises:
            SettingsError: A package is missing, or the port is taken.
        """
        try:
            import uvicorn
        except ImportError as error:
            raise _missing(error) from error
        app = self.app()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
                listener.listen()
            except (OSError, OverflowError) as error:
                raise SettingsError(f"port {port}: {error}; give another --port", code="bad-port") from error
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=2))

            def finish() -> None:
                server.should_exit = True

            self._finish = finish
            announce(f"http://{HOST}:{listener.getsockname()[1]}/{self.token}/")
            server.run(sockets=[listener])

    def _show(self, request: Request) -> Response:
        from jinja2 import Environment
        from starlette.responses import HTMLResponse

        template = (_PAGE / "review.html").read_text(encoding="utf-8")
        page = Environment(autoescape=True).from_string(template)
        data = {
            "items": [_shown(item) for item in self._items.values()],
            "tags": list(TAGS),
            "saved": [asdict(verdict) for verdict in self._saved.values()],
        }
        html = page.render(title=self._title, tags=TAGS, data=data)
        policy = (
            "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self';"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(html, headers=headers | {"Cache-Control": "no-store"})

    def _script(self, request: Request) -> Response:
        return self._file("review.js", "text/javascript")

    def _style(self, request: Request) -> Response:
        return self._file("review.css", "text/css")

    def _file(self, name: str, kind: str) -> Response:
        from starlette.responses import Response

        return Response((_PAGE / name).read_bytes(), media_type=kind)

    def _image(self, request: Request) -> Response:
        from PIL import Image
        from starlette.responses import PlainTextResponse, Response

        item = self._items.get(request.path_params["item"])
        if item is None:
            return PlainTextResponse("no such item", 404)
        try:
            path = image_path(self._image_root, item.request["image"], "request")
            # Only what decodes as an image leaves the image folder, and under its own type.
            with open_image(path) as image:
                kind = Image.MIME[str(image.format)]
        except DataError as error:
            return PlainTextResponse(str(error), 404)
        headers = {"X-Content-Type-Options": "nosniff"}
        return Response(path.read_bytes(), media_type=kind, headers=headers)

    async def _verdict(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        # A form of another site can send neither this type nor, without asking first, JSON.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "wanted JSON"}, 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LONGEST_BODY:
                return JSONResponse({"error": "too long"}, 413)
        try:
            verdict = make_verdict(_parse(body), PERSON)
            if verdict.item not in self._items:
                raise DataError(f"no item {verdict.item!r}", code="unknown-item")
        except DataError as error:
            return JSONResponse({"error": str(error)}, 400)
        try:
            self._save(verdict)
        except OSError as error:
            return JSONResponse({"error": f"not saved: {error}"}, 500)
        self._saved[verdict.item] = verdict
        return JSONResponse({"saved": verdict.item})

    async def _end(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        self._finish()
        return JSONResponse({"finished": True})


def _parse(body: bytes) -> object:
    from llava.json_text import JsonFaultError, parse_json

    try:
        return parse_json(body.decode(), strict=True)
    except (JsonFaultError, UnicodeDecodeError) as error:
        raise DataError(f"no JSON ({error})", code="bad-verdict") from error


def _shown(item: Item) -> JsonObject:
    return {
        "id": item.id,
        "type": item.type,
        "image": item.request["image"],
        "question": item.question,
        "options": item.lines,
        "letter": item.letter,
        "answer": item.answer,
    }


def _missing(error: ImportError) -> SettingsError:
    return SettingsError(
        f"the review page needs {error.name}: pip install 'llava[engine]'", code="missing-package"
    )
