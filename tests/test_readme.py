"""What the README says can be run."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tiny import build, tokens

import ssmax_eval
from ssmax_eval.cli import main
from ssmax_eval.mechanisms.registry import MECHANISMS
from ssmax_eval.training.train import SHAPE

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


LINES = [
    line for line in "\n".join(blocks("sh")).splitlines() if line.startswith("ssmax-eval") and "lm-eval" not in line
]
# a recipe of seconds: the shape of the command, not its size
TINY = {
    "layers": 1, "hidden": 16, "heads": 2, "feed_forward": 16, "vocabulary": 400, "steps": 8, "tokens_per_step": 512,
    "train_length": 128, "short_length": 64, "text_characters": 20000, "warmup_steps": 1, "text": "generated",
}  # fmt: skip


def test_own_law_of_the_readme():
    code = next(block for block in blocks("python") if "@register" in block)
    model, ids = build("Llama"), tokens()
    with torch.no_grad():
        before = model(ids).logits
    try:
        exec(code.replace("    ...", "    logits = model(ids).logits"), names := {"model": model, "ids": ids})
        assert (names["logits"] - before).abs().max() > 1e-3
        assert "clipped" in MECHANISMS
    finally:
        MECHANISMS.pop("clipped", None)


def test_python_lines_of_the_readme(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api, by_hand = (block.replace("smollm2-135m", str(checkpoint)) for block in blocks("python")[:2])
    fields = ", ".join(f"{key}={value!r}" for key, value in TINY.items())
    exec(api.replace("[512, 1024], trials=10", "[96, 128], trials=1").replace("steps=300", fields), names := {})
    assert len(names["df"]) == 20
    assert (tmp_path / "reports" / "mine.html").is_file()
    exec(by_hand, {"ssmax_eval": ssmax_eval})


def prepared(line, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moby_dick.txt").write_text("Call me Ishmael. Some years ago I went to sea. " * 60)
    words = line.replace("./my-model", str(checkpoint)).replace("meta-llama/Llama-3.2-1B", str(checkpoint)).split()[1:]
    if words[0] == "train":
        given = {word.partition("=")[0] for word in words} | ({"text"} if "--text" in words else set())
        given |= set(SHAPE) if "--start" in words else set()
        words += [part for key, value in TINY.items() if key not in given for part in ("--set", f"{key}={value}")]
    if words[0] == "loss":
        words = [word.replace("16384", "384") for word in words] + ["--documents", "2"]
    if words[0] in ("needle", "attention", "run"):
        words = [word for i, word in enumerate(words) if "--context-lengths" not in words[max(0, i - 1) : i + 1]]
        words += ["--context-lengths", "384", "--depth-percents", "50", "--trials", "1"]
    return words


@pytest.mark.parametrize("line", [line for line in LINES if "models/" not in line and "--out models" not in line])
def test_commands_of_the_readme(line, checkpoint, tmp_path, monkeypatch, capsys):
    """Every example runs, on a tiny model and a tiny grid."""
    words = prepared(line, checkpoint, tmp_path, monkeypatch)
    if words[0] == "report":
        main_ok(capsys, ["needle", "--model", str(checkpoint), "--context-lengths", "96", "--trials", "1"])
    main_ok(capsys, words)


def test_training_commands_of_the_readme(checkpoint, tmp_path, monkeypatch, capsys):
    """One after the other, since they build on each other; then what the README opens, opened."""
    for line in LINES:
        if "models/" in line or "--out models" in line:
            main_ok(capsys, prepared(line, checkpoint, tmp_path, monkeypatch))
    code = next(block for block in blocks("python") if "AutoModelForCausalLM" in block)
    exec(code, names := {"ssmax_eval": ssmax_eval, "transformers": transformers})
    assert names["model"].config.ssmax["attention"] == "ssmax"


def main_ok(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0, capsys.readouterr()


def test_every_column_is_told_of_and_the_notebook_runs(checkpoint, tmp_path, monkeypatch):
    """results/README.md names the columns of all probes, no more and no fewer."""
    import matplotlib

    text = (Path(__file__).parent.parent / "results" / "README.md").read_text()
    told = {name for line in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", line)}
    monkeypatch.chdir(tmp_path)
    small = {"context_lengths": [96, 128], "depth_percents": [0, 100], "trials": 2}
    ssmax_eval.attention(str(checkpoint), **small, output_path="other")
    ssmax_eval.loss(str(checkpoint), context_length=64, documents=2, window=16, output_path="other")
    ssmax_eval.needle(str(checkpoint), attention=["softmax", "ssmax"], **small)
    assert set(ssmax_eval.load_results("other", "results").columns) == told
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names := {})
    plt.close("all")
    assert len(names["cells"]) == 8
