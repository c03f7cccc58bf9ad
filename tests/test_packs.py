"""Runs of a study in one file: the rows and the page of their folders, in a fraction of the bytes."""

import pandas as pd
import pytest
from test_cli import call

import ssmax_eval
from ssmax_eval import UserError
from ssmax_eval.results import find_runs, load_results

GRID = {"context_lengths": [96], "depth_percents": [0, 100], "trials": 3}


@pytest.fixture(scope="module")
def stored(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    ssmax_eval.needle(str(checkpoint), attention=["softmax", "ssmax"], **GRID, output_path=folder)
    ssmax_eval.attention(str(checkpoint), **GRID, output_path=folder)
    return folder


def test_a_pack_is_read_as_its_folders(stored, tmp_path, capsys):
    code, out, err = call(capsys, "pack", stored, "--out", tmp_path / "study.zip")
    assert (code, err) == (0, "")
    pack = tmp_path / "study.zip"
    assert out.strip() == str(pack)
    assert pack.stat().st_size < sum(path.stat().st_size for path in stored.rglob("*") if path.is_file()) / 3
    packed, plain = find_runs(pack), find_runs(stored)
    assert {run.run_id: run.record() for run in packed} == {run.run_id: run.record() for run in plain}
    by = ["run_id", "sample"]
    ordered = [load_results(path).sort_values(by, ignore_index=True) for path in (pack, stored, tmp_path)]
    pd.testing.assert_frame_equal(ordered[0], ordered[1])
    pd.testing.assert_frame_equal(ordered[2], ordered[1])  # found in a folder too
    pages = [ssmax_eval.report(path, tmp_path / f"{i}.html").read_text() for i, path in enumerate((pack, stored))]
    assert len(pages[0]) == len(pages[1])


def test_a_pack_of_packs_is_the_same_bytes(stored, tmp_path, capsys):
    for source, name in ((stored, "one.zip"), (tmp_path / "one.zip", "two.zip")):
        assert call(capsys, "pack", source, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_what_is_no_pack_is_one_line(stored, tmp_path, capsys):
    (tmp_path / "junk.zip").write_bytes(b"PK junk")
    with pytest.raises(UserError, match="junk.zip'?: it cannot be read"):
        find_runs(tmp_path / "junk.zip")
    for asked, says in (
        ((stored, "--out", tmp_path / "study.tar"), "its name has to end in .zip"),
        ((stored, stored / "needle", "--out", tmp_path / "x.zip"), None),
        ((tmp_path / "none", "--out", tmp_path / "x.zip"), "no such path"),
    ):
        code, _, err = call(capsys, "pack", *asked)
        assert (code == 0) if says is None else (code == 2 and says in err)
