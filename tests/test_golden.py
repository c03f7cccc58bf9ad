"""The rows of today's house, which a rebuilt one must give: to a rounding where they were made, else to 1 part in 1,000."""

from itertools import islice
from typing import Any

import golden
import pytest
import torch

PARTS = 3


@pytest.fixture
def as_they_were_made():
    """On as many threads as the golden rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(golden.THREADS)
    yield
    torch.set_num_threads(before)


def same(found: Any, stored: Any, where: str, exactly: bool) -> None:
    """Compare two JSON values: all but broken numbers to the bit."""
    if isinstance(stored, dict):
        assert set(found) >= set(stored), where  # a later column is no change of an earlier one
        for key, value in stored.items():
            same(found[key], value, f"{where}.{key}", exactly)
    elif isinstance(stored, list):
        assert len(found) == len(stored), where
        for i, (one, other) in enumerate(zip(found, stored, strict=True)):
            same(one, other, f"{where}[{i}]", exactly)
    elif isinstance(stored, float):
        # sums in float32 round otherwise by how memory lies, on one machine too
        close = {"rel": 1e-5, "abs": 1e-5} if exactly else {"rel": 1e-3, "abs": 1e-4}
        assert found == pytest.approx(stored, **close), where
    else:
        assert found == stored, where


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))  # for several workers
def test_rows_are_the_golden_ones(part, as_they_were_made):
    compared = 0
    for name, make, length in islice(golden.subjects(), part, None, PARTS):
        assert golden.path_of(name).exists(), f"no golden rows of {name}: python tests/golden.py"
        stored = golden.read(name)
        exactly = stored["machine"] == golden.machine()
        found = golden.plain(dict(golden.runs(name, make(), length)))
        same(found, stored["rows"], name, exactly)
        compared += 1
    assert compared >= 4
