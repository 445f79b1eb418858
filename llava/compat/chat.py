"""What web demos ask of a conversation with images: `Conversation` inherits it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

from llava.constants import DEFAULT_IMAGE_TOKEN

if TYPE_CHECKING:
    from PIL import Image

    Shown = tuple[str, Image.Image, str]
    Message = str | Shown | None
    """A turn's text, alone or with a PIL image and its process mode; None for an answer still to come."""

JPEG_IN_A_PAGE = '<img src="data:image/jpeg;base64,{}" alt="user upload image" />'


class ImagesInMessages:
    """Shows the images in a conversation's messages; the model's input comes from llava.images.

    A message with an image is a tuple (text, PIL image, process mode).
    """

    messages: Sequence[Sequence[Message]]
    offset: int

    @overload
    def get_images(self, return_pil: Literal[False] = False) -> list[str]: ...

    @overload
    def get_images(self, return_pil: Literal[True]) -> list[Image.Image]: ...

    def get_images(self, return_pil: bool = False) -> Sequence[Image.Image | str]:
        """Return the images of the human's turns, each in its process mode: PIL images, or PNG in base64."""
        shown = [message for _, message in self.messages[self.offset :: 2] if isinstance(message, tuple)]
        return [self.process_image(image, mode, return_pil) for _, image, mode in shown]

    def to_gradio_chatbot(self) -> list[list[Message]]:
        """Return [what the human said, the answer or None] for each pair of turns, images as HTML."""
        pairs: list[list[Message]] = []
        for index, (_, message) in enumerate(self.messages[self.offset :]):
            if index % 2:
                pairs[-1][-1] = message
                continue
            if isinstance(message, tuple):
                text, image, _ = message
                encoded = self.process_image(image, "Default", image_format="JPEG")
                message = JPEG_IN_A_PAGE.format(encoded) + text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            pairs.append([message, None])
        return pairs

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """Prepare a PIL image for display.

        Args:
            image: A PIL image.
            image_process_mode: "Pad" to a square, "Resize" to 336x336, "Default" and "Crop" leave it.
            return_pil: Return the PIL image instead of its base64 text.
            image_format: The encoding behind the base64 text.
            max_len: Pixels of the longer side above which the image is shrunk...
            min_len: ...until its shorter side has at most this many.

        Raises:
            ValueError: The mode is unknown.
        """
        if image_process_mode == "Pad":
            image = _padded_to_square(image)
        elif image_process_mode == "Resize":
            image = image.resize((336, 336))
        elif image_process_mode not in ("Default", "Crop"):
            raise ValueError(f"Invalid image_process_mode: {image_process_mode}")
        if max(image.size) > max_len:
            ratio = max(image.size) / min(image.size)
            shorter = int(min(max_len / ratio, min_len, min(image.size)))
            longer = int(shorter * ratio)
            image = image.resize((longer, shorter) if image.width > image.height else (shorter, longer))
        if return_pil:
            return image
        stream = io.BytesIO()
        image.save(stream, format=image_format)
        return base64.b64encode(stream.getvalue()).decode()


def _padded_to_square(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    border = (left, top, side - image.width - left, side - image.height - top)
    return ImageOps.expand(image, border, fill=(122, 116, 104))
