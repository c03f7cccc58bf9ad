"""Golden rows: what a rebuilt house must give to the bit. `python tests/golden.py` writes them, test_golden.py compares.

Needle (forced, generated, in chunks), attention and loss of the bundled pair, of SmolLM2 where it is installed, and of ten
tiny architectures, on two threads. Rows hold numbers of a processor's own rounding, so a file says on what it was made.
"""

import gzip
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
TINY = ("Llama", "Qwen3", "Mistral", "GPTNeoX", "GPT2", "OPT", "Gemma3Text", "Phi3", "DeepseekV3", "Jamba")
SMOLLM2 = "smollm2-135m"
NAMES = ("softmax-bible-2m", "ssmax-bible-2m", SMOLLM2, *TINY)
CHANGES: dict[str, dict[str, Any]] = {
    "Jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
}  # fmt: skip
THREADS = 2  # another number rounds a few sums otherwise
NOT_ROWS = ("run_id", "fingerprint")  # of a model in memory these hold names of the libraries' code


def machine() -> dict[str, str]:
    """Return what roundings hang on."""
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def subjects() -> dict[str, tuple[Callable[[], Any], int]]:
    """Return, by name, what makes a model as the API takes it (opening one takes seconds), and the length of its prompts."""
    from conftest import make_tokenizer
    from tiny import build

    from ssmax_eval.models.load import load_model
    from ssmax_eval.models.sources import PAIR, packaged_path

    def smollm2() -> dict[str, Any]:
        # its package's GGUF takes seconds to open, so once for all calls
        return {SMOLLM2: load_model(SMOLLM2, dtype="float32", device="cpu")}

    def tiny(name: str) -> dict[str, Any]:
        return {name: (build(name, vocab_size=1024, **CHANGES.get(name, {})), make_tokenizer("digits"))}

    found: dict[str, tuple[Callable[[], Any], int]] = {name: (partial(str, name), 512) for name in PAIR}
    if packaged_path(SMOLLM2) is not None:
        found[SMOLLM2] = smollm2, 256
    return found | {name: (partial(tiny, name), 160) for name in TINY}


def runs(name: str, model: Any, length: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each probe's rows for a model."""
    import pandas as pd

    from ssmax_eval import UserError, api

    grid = {"context_lengths": (length,), "depth_percents": (0, 50), "trials": 2, "dtype": "float32", "device": "cpu"}
    document = {"context_length": length, "documents": 2, "window": 32, "dtype": "float32", "device": "cpu"}
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "needle": (api.needle, {**grid, "controls": ("no-needle", "needle-only")}),
        "plan 1": (api.needle, {**grid, "plan": 1}),
        "generate": (api.needle, {**grid, "trials": 1, "scoring": "generate"}),
        "chunked": (api.needle, {**grid, "trials": 1, "chunk": 50}),
        "ssmax": (api.needle, {**grid, "trials": 1, "attention": "ssmax"}),
        "attention": (api.needle, {**grid, "trials": 1, "attention_mass": True}),
        "loss": (api.loss, document),
        "loss chunked": (api.loss, {**document, "chunk": 50}),
    }
    for what, (function, options) in asked.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows = function(model, output_path=folder, **options)
            except UserError as error:
                yield what, [{"refused": str(error)}]
                continue
        rows = rows.drop(columns=[column for column in NOT_ROWS if column in rows]).astype(object)
        yield what, rows.where(pd.notna(rows), None).to_dict("records") if not holds_lists(rows) else records(rows)


def holds_lists(rows: Any) -> bool:
    return any(isinstance(value, list) for value in rows.iloc[0])


def records(rows: Any) -> list[dict[str, Any]]:
    """Return rows with lists in them as JSON has them."""
    return [
        {key: None if not isinstance(value, list) and value != value else value for key, value in row.items()}
        for row in rows.to_dict("records")
    ]


def plain(value: Any) -> Any:
    """Return a value in JSON's types, as a stored row has it."""
    return json.loads(json.dumps(value, default=lambda each: each.item() if hasattr(each, "item") else str(each)))


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json.gz"


def write(name: str, found: dict[str, Any]) -> None:
    """Write one model's golden rows, the same bytes for the same rows."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "rows": found}, indent=0, sort_keys=True)
    with path_of(name).open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as stream:
        stream.write(text.encode())


def read(name: str) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(path_of(name).read_bytes())))


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401  (which sets a number of threads)
    import torch

    torch.set_num_threads(THREADS)
    for name, (make, length) in subjects().items():
        write(name, plain(dict(runs(name, make(), length))))
        print(name, path_of(name).stat().st_size)


if __name__ == "__main__":
    main()
