"""A server on the loopback with the endpoints of `vllm serve --enable-scale-out` that we call.

transformers answers in vLLM's place, from what `llava export` wrote: other code than the engine's.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


@dataclass
class ServedModel:
    """An exported model; `asked` holds the bodies of the requests for answers."""

    folder: Path
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32)
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self._lock = threading.Lock()

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return what vLLM would."""
        if path == "/tokenize":
            ids = self.processor.tokenizer(
                body["prompt"], add_special_tokens=body["add_special_tokens"]
            ).input_ids
            return {"tokens": ids}
        with self._lock:
            self.asked.append(body)
            return {"choices": [self._generate(body)]}

    @torch.inference_mode()
    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        config, sampling = self.model.config, body["sampling_params"]
        pixels: dict[str, Any] = {}
        if parts := body["content_parts"]:
            contents = [base64.b64decode(part["url"].partition(",")[2]) for part in parts]
            pictures = [Image.open(io.BytesIO(content)) for content in contents]
            pixels = dict(self.processor.image_processor(images=pictures, return_tensors="pt"))
        counts = {config.image_token_index: config.image_seq_length}
        ids = [new for token in body["token_ids"] for new in [token] * counts.get(token, 1)]
        made = self.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **pixels,
            max_new_tokens=sampling["max_tokens"],
            eos_token_id=sampling["stop_token_ids"],
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        new = made.sequences[0, len(ids) :].tolist()
        steps = []
        for token, scores in zip(new, made.scores, strict=True):
            best = torch.log_softmax(scores[0].float(), dim=0).topk(sampling["logprobs"])
            likeliest = [
                {"token_id": index, "logprob": value}
                for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            steps.append({"token_id": token, "logprob": likeliest[0]["logprob"], "top_logprobs": likeliest})
        return {"token_ids": new, "logprobs": {"content": steps}}


@contextmanager
def served(model: ServedModel) -> Iterator[str]:
    """Serve during the block; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = json.dumps(model.reply(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
