"""The `llava` command: a table of sub-commands, each a module that is imported only when it is run."""

from __future__ import annotations

import runpy
import sys

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("llava.doctor", "what this machine has, what is missing, and the command that installs it"),
    "layout": ("llava.layout", "check the image folders and files under playground/data"),
    "download": ("llava.layout.download", "get training data and benchmarks, each into its folder"),
    "check": ("llava.data.check", "look at training data: records, images, lengths"),
    "engine": (
        "llava.data_engine",
        "steer the data engine, convert its records, mix them into base data",
    ),
    "features": ("llava.infer.features", "a feature vector for each image of a folder"),
    "plan": ("llava.train.plan", "what a training script needs: memory, steps, hours; without its weights"),
    "train": ("llava.train.train", "train (the flags of scripts/v1_5/*.sh)"),
    "eval": ("llava.eval", "evaluate a model on benchmarks: answer, score, write submissions"),
    "judge": ("llava.eval.judge", "let a model grade the answers to MM-Vet and LLaVA-Bench"),
    "ask": ("llava.eval.run_llava", "ask one question about one image"),
    "chat": ("llava.serve.cli", "talk about images on a terminal"),
    "web": ("llava.serve.web", "talk about images on a web page, with one model or two side by side"),
    "merge": ("llava.exchange.merge", "merge an adapter into its base"),
    "export": ("llava.exchange.export", "write a model for transformers, vLLM and SGLang"),
    "push": ("llava.exchange.push", "upload a model's folder to the Hugging Face Hub"),
    "import": ("llava.exchange.import_folder", "turn a llava-hf folder into the original's format"),
    "benchmarks": ("llava.benchmarks", "prepare, score or write the submission of a benchmark"),
    "report": (
        "llava.report",
        "compare runs: scores; `results`: a paper's table; `compare`, `badcases`: questions; `training`",
    ),
}


def main() -> None:
    """Run the sub-command named by the first argument with the arguments that follow it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        wanted_help = name in {"-h", "--help"}
        stream = sys.stdout if wanted_help else sys.stderr
        if not wanted_help:
            stream.write(f"error: no command {name!r}; there are:\n")
        stream.write("usage: llava COMMAND [ARGUMENTS]   (llava COMMAND --help tells more)\n")
        stream.writelines(f"  {command:<11} {text}\n" for command, (_, text) in COMMANDS.items())
        sys.exit(0 if wanted_help else 2)
    module = COMMANDS[name][0]
    sys.argv[:2] = [f"llava {name}"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
