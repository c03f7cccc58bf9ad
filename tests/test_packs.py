"""Runs of a study in one file: the rows and the page of their folders, in a fraction of the bytes."""

import json
import os
import shutil
import zipfile

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


@pytest.mark.parametrize(
    ("below", "name"), [("results", "hand.zip"), ("my study/results", "Hand.ZIP"), ("", "own.zip")]
)
def test_a_zip_file_of_results_that_was_made_by_hand_is_read_too(stored, tmp_path, below, name):
    """As a file manager packs a folder: its name stands in front of each file's, and other files are among them."""
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in sorted(file for file in stored.rglob("*") if file.is_file()):
            archive.write(file, os.path.join(below, file.relative_to(stored)))
        archive.writestr(os.path.join(below, "notes/of/others/run.json"), "{}")
    for path in (tmp_path / name, tmp_path):
        assert {run.run_id: run.record() for run in find_runs(path)} == {
            run.run_id: run.record() for run in find_runs(stored)
        }
        assert len(load_results(path)) == len(load_results(stored))
    with zipfile.ZipFile(tmp_path / name) as archive, zipfile.ZipFile(tmp_path / "lost.zip", "w") as less:
        rows = next(each for each in archive.namelist() if each.endswith("rows.jsonl"))
        for each in archive.namelist():
            if each != rows:
                less.writestr(each, archive.read(each))
    with pytest.raises(UserError, match="its rows.jsonl is gone"):
        find_runs(tmp_path / "lost.zip")


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


def test_a_run_that_could_not_be_read_again_is_not_packed(stored, tmp_path, capsys):
    for number, (change, says) in enumerate(
        (
            (lambda run: run.rows_path.write_text("not json\n"), "line 1 of rows.jsonl is broken"),
            (lambda run: os.truncate(run.rows_path, run.size - 9), "rows.jsonl holds"),
            (lambda run: (run.folder / "rows.0.jsonl").touch(), "of a launch that did not end"),
            (lambda run: run.record_path.write_text(json.dumps({**run.record(), "probe": "../../x"})), "probe: "),
            (lambda run: run.record_path.write_text(json.dumps({**run.record(), "probe": "loss"})), "is broken"),
            (lambda run: run.folder.rename(run.folder.with_name("of mine")), "rename the run's folder"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(stored / "needle", folder / "needle")
        change(find_runs(folder)[0])
        code, out, err = call(capsys, "pack", folder, "--out", tmp_path / "x.zip")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
        assert not (tmp_path / "x.zip").exists()


def test_a_pack_whose_bytes_changed_is_one_line(stored, tmp_path, capsys):
    pack = tmp_path / "study.zip"
    assert call(capsys, "pack", stored, "--out", pack)[0] == 0
    whole = pack.read_bytes()
    for place in (40, 60, 200, len(whole) // 2, len(whole) - 30):
        content = bytearray(whole)
        for each in range(place, place + 8):
            content[each] ^= 255
        pack.write_bytes(content)
        code, _, err = call(capsys, "report", pack, "--out", tmp_path / "x.html")
        assert (code, err.count("\n")) == (2, 1), place
        assert "it cannot be read" in err or "cannot be read" in err or "no rows.jsonl" in err


def test_other_zip_files_in_a_tree_are_left_out_with_a_note(stored, tmp_path, caplog):
    shutil.copytree(stored, tmp_path / "runs")
    (tmp_path / "runs" / "backup.zip").write_bytes(b"PK junk")
    with zipfile.ZipFile(tmp_path / "runs" / "theirs.zip", "w") as archive:
        for name in ("a.txt", "rows.jsonl", "../../x/rows.jsonl", "/etc/a/rows.jsonl", "a/b/c/rows.jsonl"):
            archive.writestr(name, "{}\n")
    assert len(find_runs(tmp_path / "runs")) == 3
    assert [message for message in caplog.messages if "left out" in message and "backup.zip" in message]


def test_a_run_in_its_folder_and_in_a_pack_is_one(stored, tmp_path, capsys):
    shutil.copytree(stored, tmp_path / "runs")
    assert call(capsys, "pack", stored, "--out", tmp_path / "runs" / "study.zip")[0] == 0
    for paths in ([tmp_path / "runs"], [stored, tmp_path / "runs" / "study.zip"], [*find_runs(stored), tmp_path]):
        assert len(load_results(*paths)) == len(load_results(stored))
    assert len(find_runs(tmp_path / "runs", stored)) == len(find_runs(stored))


def test_the_size_of_packed_rows_is_told_without_reading_them(stored, tmp_path, capsys, monkeypatch):
    call(capsys, "pack", stored, "--out", tmp_path / "study.zip")
    sizes = [sorted(run.size for run in find_runs(path)) for path in (tmp_path / "study.zip", stored)]
    runs = find_runs(tmp_path / "study.zip")
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert sorted(run.size for run in runs) == sizes[0] == sizes[1]
