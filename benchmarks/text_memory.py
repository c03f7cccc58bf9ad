"""What a long text costs: peak memory above the baseline as a multiple of the file, and CPU seconds, as a haystack and for the loss.

usage: python benchmarks/text_memory.py [MEGABYTES ...]    (default: 3 30)
Each measurement is a process of its own. The text is generated; with `wide`, one emoji makes every character of a Python
string four bytes wide; `unspaced` has no white space at all.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {
    "prose": "The quiet harbour was full of boats in winter, and the mayor said so. ",
    "wide": "The quiet harbour was full of boats 😀 in winter, and the mayor said so. ",
    "unspaced": "abcdefghijklmnopqrstuvwxyz",
}
MEASURE = """
import json, random, resource, sys, time
from itertools import islice
from ssmax_eval.data.documents import Documents
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.models.load import load_tokenizer
from ssmax_eval.models.sources import PAIR, resolve
use, path = sys.argv[1:]
tokenizer = load_tokenizer(resolve([*PAIR][0]), False)
tokenizer("warm")
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
if use == "loss":
    found = Documents(path).windows(tokenizer, 4096, 8, 0)
else:
    source = haystack(path, any_script=use == "haystack")
    source.sha256
    found = list(islice(source.sentences(random.Random(0)), 100))
seconds = time.process_time() - started
print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, seconds]))
"""


def measure(use: str, path: Path) -> tuple[int, float]:
    """Return the bytes above the baseline and the seconds that one use of a text takes in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, use, str(path)], capture_output=True, text=True, check=True)
    extra, seconds = json.loads(done.stdout.splitlines()[-1])
    return extra, seconds


def write(path: Path, kind: str, size: int) -> Path:
    """Write a text of one kind, of about `size` bytes."""
    unit = KINDS[kind].encode()
    path.write_bytes(unit * (size // len(unit)))
    return path


if __name__ == "__main__":
    sizes = [float(each) for each in sys.argv[1:]] or [3.0, 30.0]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            for megabytes in sizes:
                path = write(Path(folder) / "text.txt", kind, int(megabytes * 1e6))
                for use in ("haystack", "plan 1", "loss"):
                    extra, seconds = measure(use, path)
                    print(
                        f"{kind:9} {megabytes:6g} MB {use:9} {extra / 1e6:7.0f} MB, {extra / 1e6 / megabytes:5.2f} x, {seconds:6.1f} s"
                    )
