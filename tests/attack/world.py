"""What is attacked: a small model, a user's mechanism, text, stored runs, a pack, a training run; each trial has its own copy."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .trial import ended, rows_in

SMALL = ["--model", "ck", "--output-path", "out"]
NO_PAGE = ["--no-report"]
GRID = ["--context-lengths", "64,96", "--depth-percents", "0,50,100", "--trials", "2"]
ONE = ["--context-lengths", "96", "--depth-percents", "0,100", "--trials", "1"]
# commands that store rows, and go on with them
STORES = {
    "needle": ["needle", *SMALL, *GRID],
    "attention": ["attention", *SMALL, *GRID],
    "loss": ["loss", *SMALL, "--context-length", "96", "--documents", "6", "--window", "16"],
    "run": ["run", *SMALL, *GRID, "--documents", "3"],
    "sweep": ["run", "sweep.yaml", "--output-path", "out"],
    "reach": ["reach", *SMALL, "--context-lengths", "64,128", "--limit-tokens", "3000", "--page", "out/reach.html"],
}
TRAINED = [
    "train",
    "--recipe",
    "smoke",
    "--set",
    "steps=6",
    "--set",
    "text_characters=20000",
    "--set",
    "vocabulary=300",
    "--out",
]
SMALLEST = ["--recipe", "smoke", "--seeds", "0", *TRAINED[3:-1]]
NOWHERE = "ck/config.json/x"  # where none can be written: all that is asked is looked at before, and little is done
# words of a command that do little, and more of them, perhaps, behind which bad options come
LITTLE: dict[str, list[str]] = {
    "needle": ["--model", "ck", *ONE],
    "attention": ["--model", "ck", *ONE],
    "needed-scale": ["--model", "ck", *ONE],
    "loss": ["--model", "ck", "--context-length", "96", "--documents", "2"],
    "run": ["--model", "ck", *ONE, "--documents", "1"],
    "train": [*TRAINED[1:], "out"],
    "retrofit": ["--model", "ck", "--attention", "ssmax", "--out", "out"],
    "reach": STORES["reach"][1:],
    "report": ["runs-needle"],
    "pack": ["runs-needle", "--out", "made.zip"],
    "models": ["."],
    "mechanisms": [],
    "recipes": [],
    "fading": [],
    "lm-tasks-path": [],
    "advise": ["--model", "ck", "--context-lengths", "64,96", "--trials", "12", "--output-path", NOWHERE],
    "league": [*SMALLEST, "--models-path", NOWHERE, "--output-path", NOWHERE],
    "paper": [*SMALLEST, "--models-path", NOWHERE, "--output-path", NOWHERE],
    "lm-eval": ["--model", "ssmax-eval", "--tasks", "nothing-of-this-name"],
}
REFUSED = ("advise", "league", "paper", "lm-eval")
OF_THE_MODEL = (
    "model fingerprint dtype attention attention_swapped rope rope_theta rope_theta_factor rope_scaling error".split()
)
NEEDLE = {
    "needle": "The code of {key} is {value}.",
    "question": "What is the code of {key}?",
    "answer": "{value}",
    "keys": ["Rome", "Oslo"],
}
SWEEP = {
    "models": ["ck"], "context_lengths": [64, 96], "depth_percents": [0, 100], "output_path": "out",
    "runs": [{"probe": "needle", "seed": [0, 1], "trials": 1}, {"probe": "loss", "context_length": 96, "documents": 2}],
}  # fmt: skip
MECHANISM = """from ssmax_eval import Mechanism, register


@register
class Own(Mechanism):
    "weights = softmax"

    name = "own"

    def weights(self, scores, seen):
        return scores.softmax(-1)
"""
FUNCTION = "def answer(context, question):\n    return 'It is 7.'\n"


class World:
    """A folder with all of it, and the rows that each of STORES comes to undisturbed."""

    def __init__(self, folder: Path) -> None:
        import torch
        from conftest import make_tokenizer
        from tiny import build

        torch.set_num_threads(1)
        self.folder = folder / "world"
        (self.folder / "texts").mkdir(parents=True)
        build("Llama", vocab_size=1024, max_position_embeddings=512).save_pretrained(self.folder / "ck")
        make_tokenizer("digits").save_pretrained(self.folder / "ck")
        (self.folder / "own.py").write_text(MECHANISM)
        (self.folder / "mine.py").write_text(FUNCTION)
        (self.folder / "texts" / "a.txt").write_text("It rains in the old town. " * 400)
        self.inputs()
        self.rows: dict[str, Any] = {}
        for name, words in STORES.items():
            self.quietly([word if word != "out" else f"runs-{name}" for word in words] + NO_PAGE * (name != "reach"))
            self.rows[name] = rows_in(self.folder / f"runs-{name}")
        self.quietly([*TRAINED, "trained"])
        self.quietly(["pack", "runs-needle", "--out", "pack.zip"])
        self.lm_eval()
        self.quietly(["report", "lm"])
        shutil.rmtree(self.folder / "out")  # the page of reach

    def inputs(self) -> None:
        """Write what a user could hand over: files of a needle, a sweep and a template, weights in parts, an adapter, a .gguf file."""
        import yaml
        from gguf_files import write_gguf
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        (self.folder / "needle.yaml").write_text(yaml.safe_dump(NEEDLE))
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        (self.folder / "chat.jinja").write_text(
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
        )
        shutil.copytree(self.folder / "ck", self.folder / "adapted")
        shutil.copytree(self.folder / "ck", self.folder / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
        model = AutoModelForCausalLM.from_pretrained(self.folder / "ck")
        model.save_pretrained(self.folder / "sharded", max_shard_size="50KB")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(self.folder / "adapted")
        write_gguf(self.folder / "gguf").rename(self.folder / "tiny.gguf")

    def lm_eval(self) -> None:
        """Write what lm-eval logs of a task of ours, with the needle run's rows as its documents."""
        (self.folder / "lm").mkdir()
        rows = [
            json.loads(line)
            for line in next((self.folder / "runs-needle").rglob("rows.jsonl")).read_text().splitlines()
        ]
        samples = [
            {
                "doc": {key: row[key] for key in row if key not in OF_THE_MODEL} | {"context": "a", "answer": "b"},
                "acc": float(row["correct"]),
                "nll": row["answer_nll"],
            }
            for row in rows
        ]
        (self.folder / "lm" / "samples_ssmax_needle_1.jsonl").write_text(
            "".join(json.dumps(each) + "\n" for each in samples)
        )
        told = {
            "config": {"model": "hf", "model_args": {"pretrained": "ck"}, "device": "cpu"},
            "configs": {"ssmax_needle": {"metadata": {}}},
        }
        (self.folder / "lm" / "results_1.json").write_text(json.dumps(told))

    def quietly(self, words: list[str]) -> None:
        """Run a command in the folder; it has to end well."""
        from ssmax_eval.cli import main

        before = Path.cwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                code = ended(main, words)
        finally:
            os.chdir(before)
        assert code == 0, (words, err.getvalue())

    def copy(self, folder: Path) -> Path:
        """Return a copy of it all for one trial."""
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(self.folder, folder / "here")
