"""The notebooks of examples/ run from top to bottom, made small, and hold the pictures of a whole run."""

import json
import logging
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from own import forget
from test_readme import FIELDS

from ssmax_eval.mechanisms.registry import mechanisms
from ssmax_eval.position.bias import biases

FOLDER = Path(__file__).parent.parent / "examples"
BOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# what makes a cell small: fewer and shorter prompts, trainings of seconds
SMALLER = {
    "[256, 1024, 2048, 4096]": "[96, 128]",
    "[256, 1024, 4096]": "[96, 128]",
    "trials=8": "trials=1",
    "context_length=1024, documents=4": "context_length=128, documents=1",
    "seed=seed)": f"seed=seed, {FIELDS})",
}


def cells(name, kind):
    found = json.loads((FOLDER / name).read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("name", BOOKS)
def test_a_notebook_from_top_to_bottom(name, tmp_path, monkeypatch):
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    before, level = (dict(mechanisms()), dict(biases())), logging.getLogger("ssmax_eval").level
    names = {}
    try:
        for cell in cells(name, "code"):
            code = "".join(cell["source"])
            for large, small in SMALLER.items():
                code = code.replace(large, small)
            exec(compile(code, name, "exec"), names)
    finally:
        plt.close("all")
        forget(before)
        logging.getLogger("ssmax_eval").setLevel(level)


@pytest.mark.parametrize("name", BOOKS)
def test_what_is_stored_is_a_whole_run_without_errors(name):
    outputs = [output for cell in cells(name, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [
        output for output in outputs if output["output_type"] in ("error", "stream") and output.get("name") != "stdout"
    ]
    assert len((FOLDER / name).read_bytes()) < 400_000


def test_what_makes_cells_small_is_still_there():
    code = "".join("".join(cell["source"]) for name in BOOKS for cell in cells(name, "code"))
    assert [large for large in SMALLER if large not in code] == []
