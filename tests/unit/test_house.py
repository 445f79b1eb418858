"""The house rules a machine can check: who may import whom, what text code must not load, lengths."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "llava"

GROUND = {
    *("constants", "errors", "schema", "files", "json_text", "temporary", "image_reading", "image_features"),
    *("log", "command", "scoring"),
}
TEXT = {"samples", "conversation", "prompts"}
PIXELS_AND_IDS = {"images", "anyres", "tokenizer"}
TEXT_SIDE = {"benchmarks", "data_engine", "report", "layout"}
COMMANDS = {"eval", "train", "serve", "exchange", "cli", "doctor"}
FACADES = {"mm_utils", "utils", "__init__"}
# Modules that offer names of `compat` at the original's paths.
OFFER_COMPAT = {
    *("conversation.py", "mm_utils.py", "utils.py", "serve/cli.py"),
    *("train/train.py", "train/llava_trainer.py"),
    *("model/apply_delta.py", "model/consolidate.py", "model/make_delta.py", "model/utils.py"),
    *("eval/eval_science_qa.py", "eval/eval_textvqa.py", "eval/m4c_evaluator.py", "eval/run_llava.py"),
    *(f"eval/model_vqa{suffix}.py" for suffix in ("", "_loader", "_mmbench", "_science")),
}

# Imports go down, never up or sideways; each component may of course import its own modules.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    **dict.fromkeys(TEXT, GROUND | TEXT),
    **dict.fromkeys(PIXELS_AND_IDS, GROUND | TEXT | PIXELS_AND_IDS),
    **dict.fromkeys(TEXT_SIDE, GROUND | TEXT),
    # New questions are compared with the benchmarks', and a page shows the images of theirs.
    **dict.fromkeys(("data_engine", "report"), GROUND | TEXT | {"benchmarks"}),
    "model": GROUND | TEXT | PIXELS_AND_IDS,
    "data": GROUND | TEXT | PIXELS_AND_IDS,
    "infer": GROUND | TEXT | PIXELS_AND_IDS | {"model"},
    **dict.fromkeys(COMMANDS, GROUND | TEXT | PIXELS_AND_IDS | TEXT_SIDE | {"model", "data", "infer"}),
    # vLLM reads exported models only.
    "eval": GROUND | TEXT | PIXELS_AND_IDS | TEXT_SIDE | {"model", "data", "infer", "exchange"},
    **dict.fromkeys(FACADES, GROUND | TEXT | PIXELS_AND_IDS | {"model", "infer"}),
    "compat": GROUND | TEXT | PIXELS_AND_IDS | TEXT_SIDE | {"model", "data", "infer"},
}
HEAVY = {"torch", "transformers", "PIL", "peft", "accelerate", "pandas", "numpy", "pyarrow"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
MAX_FOLDER_FILES = 20
ERRORS = {"LlavaError", "DataError", "CheckpointError", "AnswersError", "SettingsError"}
# Every command has a main(), the original's answering commands have an eval_model() each, and every package
# with sub-commands of `llava engine` adds them.
SHARED_NAMES = {"main", "eval_model", "add_commands"}


def component(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules(*components: str) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if not components or component(path) in components]


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_down_never_up_or_sideways() -> None:
    wrong = []
    for path in modules():
        own = component(path)
        parts = [name.split(".") for name in imported(path)]
        used = {part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == "llava"}
        if path.relative_to(PACKAGE).as_posix() in OFFER_COMPAT:
            used -= {"compat"}
        if bad := used - MAY_IMPORT[own] - {own, "__version__"}:
            wrong.append(f"{path.relative_to(REPO)} ({own}) imports {sorted(bad)}")
    assert not wrong


def test_the_text_side_loads_no_heavy_library() -> None:
    names = [
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        for path in modules(*GROUND, *TEXT, *TEXT_SIDE, "cli")
        if path.stem != "__main__"
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_tensor_side_never_names_a_benchmark() -> None:
    names = {file.stem for file in (PACKAGE / "benchmarks/tasks").glob("[a-z]*.py")}
    for path in modules("model", "data", "infer", *PIXELS_AND_IDS):
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & words, path


def test_one_module_opens_images() -> None:
    found = [path.stem for path in modules() if "Image.open(" in path.read_text(encoding="utf-8")]
    assert found == ["image_reading"]


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, llava; print('torch' in sys.modules, llava.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False ")


def definitions(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """The functions and classes at the top level of a file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def test_files_and_functions_stay_readable() -> None:
    wrong = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        name = path.relative_to(REPO)
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{name} has no module docstring")
        if (count := len(text.splitlines())) > MAX_FILE_LINES:
            wrong.append(f"{name} has {count} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    assert not wrong


def test_no_package_is_a_long_list_of_files() -> None:
    folders = {path.parent for path in modules()}
    crowded = {
        str(folder.relative_to(REPO)): count
        for folder in folders
        if (count := len(list(folder.glob("[!_]*.py")))) > MAX_FOLDER_FILES
    }
    assert not crowded


def test_public_names_have_one_meaning() -> None:
    homes: dict[str, list[str]] = {}
    for path in modules():
        for node in definitions(path):
            if not node.name.startswith("_") and node.name not in SHARED_NAMES:
                homes.setdefault(node.name, []).append(str(path.relative_to(REPO)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def test_every_error_has_a_code() -> None:
    bare = [
        f"{path.relative_to(REPO)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ERRORS
        and "code" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not bare


def test_no_test_imports_another_test() -> None:
    found = [
        f"{path.relative_to(REPO)} imports {name}"
        for path in (REPO / "tests").rglob("*.py")
        for name in imported(path)
        if name.split(".")[0].startswith("test_")
    ]
    assert not found


def test_public_functions_say_what_they_do() -> None:
    bare = [
        f"{path.relative_to(REPO)}:{node.lineno} {node.name}"
        for path in modules()
        for node in definitions(path)
        if not node.name.startswith("_") and node.name != "main" and not ast.get_docstring(node)
    ]
    assert not bare
