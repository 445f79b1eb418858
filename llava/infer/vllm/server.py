"""Ask a server that `vllm serve FOLDER --enable-scale-out` started, by its endpoint for token ids.

vLLM need not be installed here.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import SettingsError, one_line
from llava.infer.vllm.answerer import Generated, GreedySampling, Picture, VllmPrompt
from llava.schema import JsonObject

_AT_A_TIME = 64  # images whose questions are under way
_TIMEOUT_S = 600
_RETRIES = Retry(total=5, backoff_factor=1, status_forcelist=(502, 503, 504), allowed_methods=None)


class VllmServer:
    """A running server; the environment's `VLLM_API_KEY` is sent along if it is set."""

    def __init__(self, url: str) -> None:
        """Look for the server.

        Args:
            url: Its address, with or without `/v1`.

        Raises:
            SettingsError: There is none, or it serves no model with images.
        """
        self._url = url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        self._session.mount(self._url, HTTPAdapter(pool_maxsize=_AT_A_TIME, max_retries=_RETRIES))
        if key := os.environ.get("VLLM_API_KEY"):
            self._session.headers["Authorization"] = f"Bearer {key}"
        ids = self._post("tokenize", {"prompt": DEFAULT_IMAGE_TOKEN, "add_special_tokens": False})["tokens"]
        if len(ids) != 1:
            raise SettingsError(
                f"{self._url}: reads {DEFAULT_IMAGE_TOKEN} as {len(ids)} tokens; serve what `llava export` "
                "writes",
                code="other-model",
            )
        self.image_token = int(ids[0])

    def generate(
        self, batches: Iterable[list[list[VllmPrompt]]], sampling: GreedySampling
    ) -> Iterator[tuple[VllmPrompt, Generated]]:
        """Yield each prompt with what was said to it, as answers come; an image's questions go one by one."""
        under_way: set[Future[list[tuple[VllmPrompt, Generated]]]] = set()
        pool = ThreadPoolExecutor(_AT_A_TIME)
        try:
            for batch in batches:
                under_way |= {pool.submit(self._ask, group, sampling) for group in batch}
                while len(under_way) > _AT_A_TIME:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _ask(
        self, group: Sequence[VllmPrompt], sampling: GreedySampling
    ) -> list[tuple[VllmPrompt, Generated]]:
        parts = [_as_part(picture) for picture in group[0].pictures]
        said = []
        for prompt in group:
            asked = {
                "token_ids": prompt.ids,
                "sampling_params": asdict(sampling),
                "content_parts": parts or None,
            }
            choice = self._post("inference/v1/generate", asked)["choices"][0]
            steps = [
                [token["logprob"] for token in step["top_logprobs"]] for step in choice["logprobs"]["content"]
            ]
            said.append((prompt, Generated(choice["token_ids"], steps)))
        return said

    def _post(self, path: str, body: JsonObject) -> JsonObject:
        try:
            response = self._session.post(f"{self._url}/{path}", json=body, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise SettingsError(
                f"{self._url}: no vLLM server answers ({one_line(error, 200)}); start `vllm serve FOLDER "
                "--enable-scale-out`",
                code="no-server",
            ) from error
        if not response.ok:
            hint = "; start it with --enable-scale-out" if response.status_code == 404 else ""
            raise SettingsError(
                f"{self._url}/{path}: {response.status_code} {' '.join(response.text.split())[:200]}{hint}",
                code="server-refused",
            )
        return response.json()


def _as_part(picture: Picture) -> dict[str, str]:
    content = io.BytesIO()
    picture.image.save(content, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return {"type": "image_url", "url": url, "uuid": picture.key}
