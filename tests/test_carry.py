"""What a lent machine's calls leave behind, in files of limited number and size, makes the folder again that was there."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
carry = pytest.importorskip("carry")


def contents(folder):
    kept = (file for file in folder.rglob("*") if file.is_file() and carry.is_note(file))
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def test_the_last_state_comes_back_whatever_the_calls(tmp_path):
    """A file that grows, one rewritten at the same length, and more calls than one digit counts, all left in one folder."""
    work, out, again = (tmp_path / name for name in ("work", "out", "again"))
    (work / "runs").mkdir(parents=True)
    for call in range(12):
        (work / "runs" / "rows.jsonl").write_text("".join(f"{i}\n" for i in range(call + 1)))
        (work / "chosen.json").write_text(f"{call % 10}")
        carry.pack(work, out)
    carry.collect(again, [out])
    assert contents(again) == contents(work)
    assert (again / "chosen.json").read_text() == "1"


def test_what_is_too_large_waits_and_is_not_taken_for_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(carry, "FILE_BYTES", 20_000)
    work = tmp_path / "work"
    work.mkdir()
    (work / "rows.jsonl").write_bytes(random.Random(0).randbytes(30_000))
    carry.pack(work, tmp_path / "one")
    assert "too large to come back" in capsys.readouterr().out
    monkeypatch.setattr(carry, "FILE_BYTES", 40_000)
    carry.pack(work, tmp_path / "two")
    carry.collect(tmp_path / "again", [tmp_path / "one", tmp_path / "two"])
    assert contents(tmp_path / "again") == contents(work)


def test_weights_are_spread_over_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(carry, "FILES", 3)
    work = tmp_path / "work"
    model = work / "models" / "gpu-ssmax-s0"
    model.mkdir(parents=True)
    (work / "logs").mkdir()
    for i in range(4):
        (model / f"model-{i}.safetensors").write_bytes(bytes([i]) * 100)
    carry.pack(work, tmp_path / "0")
    assert not list((tmp_path / "0").glob("*.safetensors"))  # its training is not finished
    (work / "logs" / "train-gpu-ssmax-s0.done").touch()
    for call in ("1", "2", "3"):
        carry.pack(work, tmp_path / call)
        assert len(list((tmp_path / call).iterdir())) <= 3
    carry.collect(tmp_path / "again", [tmp_path / call for call in "0123"])
    for file in model.iterdir():
        assert (tmp_path / "again" / file.relative_to(work)).read_bytes() == file.read_bytes()
