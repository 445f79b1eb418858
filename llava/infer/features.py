"""Compute one feature vector for each image of a folder: the mean of the vision tower's patch features.

    llava features --vision-tower openai/clip-vit-large-patch14-336 --images FOLDER --output features.npy

Images whose features are in the output already, and whose files have not changed, are not computed again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llava.command import run
from llava.errors import DataError
from llava.image_features import Features, ImageState, image_state, read_features, write_features
from llava.image_reading import list_image_files, read_image
from llava.infer.jobs.fingerprint import fingerprint_folder
from llava.log import progress_bar

if TYPE_CHECKING:  # torch and the model are imported on use, so that --help is quick
    import torch

    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower

logger = logging.getLogger(__name__)

_DECODERS = 4
# Computed features are written after so many batches, so that a killed run can go on from there.
_BATCHES_A_WRITE = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--vision-tower", required=True, help="a CLIP vision model: a folder or a hub id")
    add("--images", type=Path, required=True, help="the folder of the images, with its sub-folders")
    add("--output", type=Path, required=True, help="the .npy file to write; a .json is written beside it")
    add("--layer", type=int, default=-2, help="whose features are read (default %(default)s)")
    add("--batch", type=int, default=32, help="images at a time (default %(default)s)")
    add("--device", help="default cuda if there is a GPU, else cpu")
    arguments = parser.parse_args()
    if arguments.output.suffix != ".npy":
        raise DataError(f"{arguments.output}: wanted a name that ends with .npy", code="wrong-suffix")

    import torch

    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
    from llava.model.onednn.layers import use_onednn

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    fields = SimpleNamespace(mm_vision_select_layer=arguments.layer, image_aspect_ratio="pad")
    tower = CLIPVisionTower(arguments.vision_tower, fields, delay_load=True)
    tower.load_model(device_map={"": device})
    use_onednn(tower)
    count, computed = compute_features(tower, arguments.images, arguments.output, batch=arguments.batch)
    sys.stdout.write(
        f"features: {count:,} images of {arguments.images}, {computed:,} computed now: {arguments.output}\n"
    )


def compute_features(
    tower: CLIPVisionTower, folder: Path, output: Path, *, batch: int = 32
) -> tuple[int, int]:
    """Write the features of a folder's images; return how many they are, and how many were computed.

    A vector is the mean of the patch features (P, D) of the tower's selected layer, scaled to length 1.

    Raises:
        DataError: An image cannot be read.
    """
    from llava.model.loading.locate import locate

    print_of_layer = f"{fingerprint_folder(locate(tower.vision_tower_name))} layer {tower.select_layer}"
    states = [image_state(folder, name) for name in list_image_files(folder)]
    known = _known(output, print_of_layer)
    missing = [state for state in states if state not in known]
    bar = progress_bar(name="images", total=len(missing), unit="image")
    for start in range(0, len(missing), batch):
        part = missing[start : start + batch]
        known |= dict(zip(part, _encode(tower, folder, part), strict=True))
        bar.update(len(part))
        if (start // batch + 1) % _BATCHES_A_WRITE == 0:
            _write(output, print_of_layer, [state for state in states if state in known], known)
    bar.close()
    _write(output, print_of_layer, states, known)
    return len(states), len(missing)


def _known(output: Path, tower: str) -> dict[ImageState, NDArray[np.floating]]:
    """Return the features in the output that are of this tower."""
    if not output.is_file():
        return {}
    try:
        found = read_features(output)
    except DataError as error:
        logger.warning("%s; all features are computed again", error)
        return {}
    return dict(zip(found.images, found.vectors, strict=True)) if found.tower == tower else {}


def _encode(tower: CLIPVisionTower, folder: Path, part: list[ImageState]) -> NDArray[np.floating]:
    import torch

    from llava.images import process_images

    def pixels(state: ImageState) -> torch.Tensor:
        # The square of a padded image shows all of it, as training does.
        settings = SimpleNamespace(image_aspect_ratio="pad")
        tensor: torch.Tensor = process_images(
            [read_image(folder / state.name)], tower.image_processor, settings
        )[0]
        return tensor

    with ThreadPoolExecutor(_DECODERS) as pool:
        batch = torch.stack(list(pool.map(pixels, part)))
    features = tower(batch).float().mean(dim=1)
    vectors: NDArray[np.floating] = torch.nn.functional.normalize(features).half().cpu().numpy()
    return vectors


def _write(
    output: Path, tower: str, states: list[ImageState], known: dict[ImageState, NDArray[np.floating]]
) -> None:
    write_features(output, Features(tower, tuple(states), np.stack([known[state] for state in states])))


if __name__ == "__main__":
    run(main)
