"""Copy lm-eval's results for publishing, one JSON a run, without paths and without this machine: python lm_eval_publish.py FROM TO

FROM holds a folder a run, with results_*.json somewhere below; each becomes TO/<run>.json, tasks of several runs joined.
"""

import json
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = {
    "pretty_env_info",
    "custom_dataset",
    "config_source",
    "tokenizer",
    "upper_git_hash",
    "model_name_sanitized",
    "cores",
}


def kept(value: Any) -> Any:
    """Return a value without what is left out, paths as their last part."""
    if isinstance(value, dict):
        return {key: kept(each) for key, each in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [kept(each) for each in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def main(source: str, target: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    for run in sorted(path for path in Path(source).iterdir() if path.is_dir()):
        for i, file in enumerate(sorted(run.rglob("results_*.json"))):
            results = json.loads(file.read_text())
            out = Path(target) / f"{run.name}{f'-{i}' if i else ''}.json"
            out.write_text(json.dumps(kept(results), indent=1) + "\n")
            print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
