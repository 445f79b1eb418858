"""What `llava download` gets, from where, and where it belongs; of the rest, the page to ask at.

Addresses: LLaVA's README and docs/Evaluation.md, and the pages that they name. Sizes and SHA-256 of COCO's
archives: tensorflow_datasets/url_checksums/coco.txt. The hub gives both for its files. The other sources
publish neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.errors import SettingsError
from llava.files import read_json
from llava.layout.folders import FOLDERS

HUB = "hf://datasets/"
"""How the address of a file in a data set of the Hugging Face hub begins; one ending in "/" is all of it."""

WORK = ".downloads"
"""The folder under the data folder with what is not complete yet, and the counts of what was unpacked."""

COUNTS = "unpacked.json"


@dataclass(frozen=True, slots=True)
class Remote:
    """A file or archive to get.

    Attributes:
        url: Its address.
        into: Where it belongs under the data folder: a file, or the folder that an archive becomes.
        proof: The pattern of the files that show that a folder is complete; empty for a single file.
        entries: How many files of that pattern there are; None if no source says it.
        only: The only member of the archive that is needed; empty for all.
        size: Bytes, None if not published.
        sha256: The checksum, None if not published.
        link: Where a benchmark looks for the same folder.
    """

    url: str
    into: str
    proof: str = ""
    entries: int | None = None
    only: str = ""
    size: int | None = None
    sha256: str | None = None
    link: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it becomes a folder."""
        return bool(self.proof)

    @property
    def name(self) -> str:
        """What it is called at its source."""
        return self.url.rstrip("/").rpartition("/")[2]

    def describe(self, root: Path) -> str:
        """Return what of it is under `root`, such as "coco/train2017: 3 of 118,287 files"."""
        place = self.link or self.into
        if not self.is_folder:
            return f"{place}: {'there' if self.is_there(root) else 'missing'}"
        wanted = f" of {self.entries:,}" if self.entries and not self.link else ""
        return f"{place}: {_count(root / place, self.proof):,}{wanted} files"

    def is_there(self, root: Path) -> bool:
        """Return whether it lies complete under `root`, where it belongs or where its benchmark looks."""
        if self.link and _count(root / self.link, self.proof) > 0:
            return True
        return not self.link and self.is_unpacked(root)

    def is_unpacked(self, root: Path) -> bool:
        """Return whether it lies complete under `root` where it belongs."""
        place = root / self.into
        if not self.is_folder:
            return place.is_file() and self.size in (None, place.stat().st_size)
        wanted = unpacked_counts(root).get(self.url) or self.entries or 1
        return _count(place, self.proof) >= wanted


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a name of `llava download` stands for; with a `page`, it must be got by hand there."""

    name: str
    kind: Literal["train", "eval"]
    remotes: tuple[Remote, ...] = ()
    page: str = ""

    def lacking(self, root: Path) -> list[Remote]:
        """Return what of it is not under `root`."""
        return [remote for remote in self.remotes if not remote.is_there(root)]


def unpacked_counts(root: Path) -> dict[str, int]:
    """Return how many files the folder of each unpacked archive had, by the archive's address."""
    path = root / WORK / COUNTS
    return dict(read_json(path)) if path.is_file() else {}


def _count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))


def _images(path: str, link: str = "", size: int | None = None, sha256: str | None = None) -> Remote:
    folder = next(folder for folder in FOLDERS if folder.path == path)
    return Remote(folder.source, path, "*.jpg", folder.images, "", size, sha256, link)


_OCR_VQA = next(folder.source for folder in FOLDERS if folder.path == "ocr_vqa/images")
_MME = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
_COCO = "http://images.cocodataset.org/zips"
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa/data"
_SCIENCEQA = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa"
_POPE = (
    "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
)
_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_BENCH_WILD = f"{HUB}liuhaotian/llava-bench-in-the-wild/"
_RULE = "https://raw.githubusercontent.com/haotian-liu/LLaVA/main/llava/eval/table/rule.json"
_TESTDEV = "testdev_balanced_questions.json"

DATA_SETS = (
    DataSet(
        "mix665k",
        "train",
        (Remote(f"{HUB}liuhaotian/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "llava_v1_5_mix665k.json"),),
    ),
    DataSet(
        "dataengine",
        "train",
        (
            Remote(
                f"{HUB}juliozhao/dataengine_llava/dataengine_llava.json", "data_engine/dataengine_llava.json"
            ),
        ),
    ),
    DataSet(
        "coco",
        "train",
        (
            _images(
                "coco/train2017",
                size=19_336_861_798,
                sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
        ),
    ),
    DataSet("gqa_images", "train", (_images("gqa/images"),)),
    # Of about 207,572 images mix665k names 80,000.
    DataSet("ocr_vqa", "train", (Remote(_OCR_VQA, "ocr_vqa/images", "*.jpg", 80_000),), page=_OCR_VQA),
    DataSet("textvqa_images", "train", (_images("textvqa/train_images"),)),
    DataSet("vg", "train", (_images("vg/VG_100K"), _images("vg/VG_100K_2"))),
    DataSet(
        "pretrain",
        "train",
        (
            Remote(
                f"{HUB}liuhaotian/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
                "LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
            ),
            Remote(f"{HUB}liuhaotian/LLaVA-Pretrain/images.zip", "LLaVA-Pretrain/images", "*"),
        ),
    ),
    DataSet(
        "gqa",
        "eval",
        (
            Remote(
                "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip",
                "eval/gqa/data/questions",
                proof=_TESTDEV,
                only=_TESTDEV,
            ),
            _images("gqa/images", link="eval/gqa/data/images"),
        ),
    ),
    DataSet(
        "llava_bench",
        "eval",
        (
            Remote(_BENCH_WILD, "eval/llava-bench-in-the-wild", proof="images/*"),
            Remote(_RULE, "eval/llava-bench-in-the-wild/rule.json"),
        ),
    ),
    *(
        DataSet(name, "eval", (Remote(f"{_MMBENCH}/{file}", f"eval/{name}/{file}"),))
        for name, file in (
            ("mmbench", "mmbench_dev_20230712.tsv"),
            ("mmbench_cn", "mmbench_dev_cn_20231003.tsv"),
        )
    ),
    DataSet("mme", "eval", (Remote(_MME, "eval/MME/MME_Benchmark_release_version", "*"),), page=_MME),
    DataSet(
        "mmvet",
        "eval",
        (
            Remote(
                "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip",
                "eval/mm-vet",
                proof="images/*",
                entries=200,
            ),
        ),
    ),
    DataSet(
        "pope",
        "eval",
        (
            *(
                Remote(f"{_POPE}/coco_pope_{part}.json", f"eval/pope/coco/coco_pope_{part}.json")
                for part in ("random", "popular", "adversarial")
            ),
            Remote(
                f"{_COCO}/val2014.zip",
                "eval/pope/val2014",
                "*.jpg",
                entries=40_504,
                size=6_645_013_297,
                sha256="fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            ),
        ),
    ),
    DataSet(
        "scienceqa",
        "eval",
        (
            *(
                Remote(f"{_SCIENCEQA}/{file}", f"eval/scienceqa/{file}")
                for file in ("problems.json", "pid_splits.json")
            ),
            Remote(
                "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip",
                "eval/scienceqa/images/test",
                "*",
            ),
        ),
    ),
    DataSet(
        "seed",
        "eval",
        (
            Remote(f"{HUB}AILab-CVC/SEED-Bench/SEED-Bench.json", "eval/seed_bench/SEED-Bench.json"),
            Remote(
                f"{HUB}AILab-CVC/SEED-Bench/SEED-Bench-image.zip", "eval/seed_bench/SEED-Bench-image", "*"
            ),
        ),
    ),
    DataSet(
        "textvqa",
        "eval",
        (
            *(
                Remote(f"{_TEXTVQA}/{file}", f"eval/textvqa/{file}")
                for file in ("TextVQA_0.5.1_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json")
            ),
            _images("textvqa/train_images", link="eval/textvqa/train_images"),
        ),
    ),
    DataSet(
        "vizwiz",
        "eval",
        (
            Remote(f"{_VIZWIZ}/vqa_data/Annotations.zip", "eval/vizwiz/Annotations", proof="test.json"),
            Remote(f"{_VIZWIZ}/images/test.zip", "eval/vizwiz/test", "*", 8_000),
        ),
    ),
    DataSet(
        "vqav2",
        "eval",
        (
            Remote(
                "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Questions_Test_mscoco.zip",
                "eval/vqav2",
                proof="v2_OpenEnded_mscoco_test*_questions.json",
                entries=2,
            ),
            Remote(
                f"{_COCO}/test2015.zip",
                "eval/vqav2/test2015",
                "*.jpg",
                entries=81_434,
                size=13_270_587_935,
                sha256="1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca",
            ),
        ),
    ),
)


def select(words: list[str]) -> list[DataSet]:
    """Return the data sets that `words` name, each once; `train`, `eval` and `all` stand for several.

    Raises:
        SettingsError: There is no such name; the message lists those there are.
    """
    chosen = []
    for word in words:
        found = [data for data in DATA_SETS if word in (data.name, data.kind, "all")]
        if not found:
            names = ", ".join(data.name for data in DATA_SETS)
            raise SettingsError(
                f"no data set {word!r}; there are: {names}; train, eval and all stand for several",
                code="unknown-data-set",
            )
        chosen += found
    return list(dict.fromkeys(chosen))
