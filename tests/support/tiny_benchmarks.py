"""The smallest downloads of the benchmarks that their scripts need: two questions about one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.files import write_json, write_jsonl


def write_benchmark(script: str, root: Path) -> None:
    """Lay out under `root` what scripts/v1_5/eval/{script}.sh reads."""
    questions = [
        {"question_id": n, "image": "x.jpg", "text": f"Is it {n}?", "category": "default"} for n in (1, 2)
    ]
    gqa = {"isBalanced": True, "answer": "a", "question": "?", "imageId": "x", "semantic": [], "entailed": []}
    gqa |= {"types": {"structural": "query", "semantic": "obj", "detailed": "x"}, "groups": {"global": None}}
    said = [{"from": "human", "value": "Why?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]
    problem = {
        "question": "Why?",
        "choices": ["x", "y"],
        "answer": 0,
        "hint": "",
        "image": None,
        "split": "test",
    }
    problem |= {"subject": "natural science", "grade": "grade2", "topic": "biology"}
    files: dict[str, Any] = {
        "gqa": {
            "llava_gqa_testdev_balanced.jsonl": [
                {**row, "question_id": str(row["question_id"])} for row in questions
            ],
            "data/testdev_balanced_questions.json": {"1": gqa, "2": gqa},
            "data/images/x.jpg": None,
        },
        "vqav2": {
            "llava_vqav2_mscoco_test-dev2015.jsonl": questions[:1],
            "llava_vqav2_mscoco_test2015.jsonl": questions,
            "test2015/x.jpg": None,
            "llava_vqav2_mscoco_val2014.jsonl": questions,
            "v2_mscoco_val2014_annotations.json": {
                "annotations": [{"question_id": n, "answers": [{"answer": "a"}] * 10} for n in (1, 2)]
            },
            "val2014/x.jpg": None,
        },
        "mme": {
            "llava_mme.jsonl": [
                {**row, "question_id": "count/x.jpg", "image": "count/x.jpg", "text": f"Is {n}?\n{SHORT}"}
                for n, row in enumerate(questions)
            ],
            "MME_Benchmark_release_version/count/x.txt": "Is 0? Please answer yes or no.\tYes\n"
            "Is 1? Please answer yes or no.\tNo\n",
            "MME_Benchmark_release_version/count/x.jpg": None,
        },
        "sqa": {
            "llava_test_CQM-A.json": [{"id": "1", "conversations": said}, {"id": "2", "conversations": said}],
            "problems.json": {"1": problem, "2": problem},
            "pid_splits.json": {"test": ["1", "2"]},
            "images/test/1/x.jpg": None,
        },
        "vizwiz": {
            "llava_test.jsonl": questions,
            "test/x.jpg": None,
            "val.json": [{"image": "x.jpg", "question": "Is it?", "answers": [{"answer": "a"}] * 10}],
            "val/x.jpg": None,
        },
        "textvqa": {
            "llava_textvqa_val_v051_ocr.jsonl": [
                {**row, "question_id": "x", "text": f"{row['text']}\nReference OCR token: \n{SHORT}"}
                for row in questions
            ],
            "TextVQA_0.5.1_val.json": {
                "data": [
                    {"image_id": "x", "question": row["text"], "question_id": 7, "answers": ["a"] * 10}
                    for row in questions
                ]
            },
            "train_images/x.jpg": None,
        },
        "pope": {
            "llava_pope_test.jsonl": [
                {"question_id": n, "image": "x.jpg", "text": f"Is there {n}?\n{SHORT}", "category": name}
                for n, name in enumerate(("adversarial", "random", "popular"))
            ],
            **{
                f"coco/coco_pope_{name}.json": [
                    {"question_id": 1, "image": "x.jpg", "text": f"Is there {n}?", "label": "yes"}
                ]
                for n, name in enumerate(("adversarial", "random", "popular"))
            },
            "val2014/x.jpg": None,
        },
        "mmbench": {"mmbench_dev_20230712.tsv": TSV},
        "mmbench_cn": {"mmbench_dev_cn_20231003.tsv": TSV},
        "mmvet": {
            "llava-mm-vet.jsonl": questions,
            "mm-vet.json": {
                f"v1_{n}": {"imagename": "x.jpg", "question": "?", "answer": "a", "capability": ["ocr"]}
                for n in (1, 2)
            },
            "images/x.jpg": None,
        },
        "llavabench": {
            "questions.jsonl": [{**row, "category": "conv"} for row in questions],
            "context.jsonl": [{"image": "x.jpg", "caption": "A hill."}],
            "answers_gpt4.jsonl": [{"question_id": n, "text": "A hill."} for n in (1, 2)],
            "rule.json": {"llava_bench_conv": {"role": "Assistant", "prompt": "Rate them."}},
            "images/x.jpg": None,
        },
    }
    for name, content in files[script].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json") and not name.startswith("coco/"):
            write_json(path, content)
        elif isinstance(content, list):
            write_jsonl(path, content)
        else:
            path.write_text(content or "")


TSV = (
    "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\tl2-category\timage\tsource\tcomment\tsplit\n"
    "1\tWhich?\t\tant\tbee\t\t\tA\tx\ty\taGk=\t\t\tdev\n"
    "1000001\tWhich?\t\tbee\tant\t\t\tB\tx\ty\taGk=\t\t\tdev\n"
)
SHORT = "Answer the question using a single word or phrase."
