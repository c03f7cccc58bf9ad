"""Who holds a folder, and what is written whole: tried with real processes, interruptions and races."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ssmax_eval.disk import HALF, held, whole
from ssmax_eval.errors import UserError

STRESS = """
import os, sys
from pathlib import Path
from ssmax_eval.disk import held
from ssmax_eval.errors import UserError
folder, inside, turns = Path(sys.argv[1]), sys.argv[2], 0
while turns < 150:
    try:
        with held(folder, "busy"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # two at once: FileExistsError
            (folder / "work").mkdir()
            (folder / "work").rmdir()
            os.unlink(inside)
            turns += 1
    except UserError:
        pass
"""


ANOTHER = """
import sys
from pathlib import Path
from ssmax_eval.disk import whole
with whole(Path(sys.argv[1]) / "b") as half:
    half.write_text("b")
"""


def test_processes_that_make_and_remove_one_folder_never_hold_it_together(tmp_path):
    arguments = [sys.executable, "-c", STRESS, tmp_path / "made" / "out", tmp_path / "inside"]
    for process in [subprocess.Popen(arguments, stderr=subprocess.PIPE) for _ in range(3)]:
        _, err = process.communicate()
        assert (process.returncode, err) == (0, b"")
    assert not (tmp_path / "made" / "out").exists()


def test_who_does_not_hold_a_folder_touches_nothing(tmp_path):
    folder = tmp_path / "out"
    with held(folder, "busy"):
        for _ in range(2):
            with pytest.raises(UserError, match="busy"), held(folder, "busy"):
                pytest.fail("held twice")
            assert folder.is_dir()
        (folder / "kept").touch()
    assert [file.name for file in folder.iterdir()] == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), held(tmp_path / "file" / "x", "busy"):
        pass


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_what_is_not_whole_leaves_nothing(tmp_path, stop):
    (tmp_path / "a").write_text("before")

    def fail(half):
        half.write_text("half")
        raise stop

    for name in ("a", "folder"):
        with pytest.raises(stop), whole(tmp_path / name) as half:
            fail(half)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "before"}


def killed_at(number, work):
    """Do some work in a process that is killed at the numbered line of disk.py that it comes to; tell whether it came so far."""
    if (child := os.fork()) == 0:
        left = iter(range(number))

        def trace(frame, event, _):
            if event == "line" and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace if frame.f_code.co_filename.endswith("disk.py") else None

        sys.settrace(trace)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_kill_leaves_at_any_line_is_gone_after_the_next(tmp_path):
    """And what is there is whole, before or after; a folder that only looks alike is left alone."""
    out = tmp_path / "out"
    (tmp_path / f"{HALF}of-another").mkdir()
    (tmp_path / f"{HALF}of-another" / "kept").touch()

    def work():
        with held(out, "busy"), whole(out / "model") as half:
            half.mkdir()
            (half / "a").write_text("1")
        with whole(out.with_name("file")) as half:
            half.write_text("1")

    number = 0
    while killed_at(number, work):
        for file in (out / "model" / "a", tmp_path / "file"):
            assert not file.exists() or file.read_text() == "1"
        number += 1
        for folder in (out, tmp_path):
            with suppress(OSError), whole(folder / "next") as half:
                half.touch()
        with held(out, "busy"):
            pass
        assert not {file.name for file in tmp_path.rglob("*")} - {
            "out",
            "model",
            "a",
            "file",
            "next",
            "kept",
            f"{HALF}of-another",
        }
        shutil.rmtree(out, ignore_errors=True)
    assert number > 50


def test_what_another_process_has_half_is_left_to_it(tmp_path):
    with whole(tmp_path / "a") as half:
        half.write_text("a")
        subprocess.run([sys.executable, "-c", ANOTHER, tmp_path], check=True)
        with whole(tmp_path / "c") as inner:
            inner.write_text("c")
        with held(tmp_path, "busy"):
            pass
    with whole(tmp_path / "d"):
        pass  # nothing is made
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: name for name in "abc"}


def test_what_is_whole_takes_its_place(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    with whole(tmp_path / "file") as half:
        half.write_text("1")
    with whole(tmp_path / "folder") as half:
        half.mkdir()
        (half / "x").touch()
    with pytest.raises(OSError), whole(tmp_path / "folder") as half:
        half.mkdir()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder", "plain", "x"]
    # with the permissions that any file has
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "plain").st_mode


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder in which none can be made")
def test_a_folder_that_cannot_be_made_is_not_called_busy():
    with pytest.raises(UserError, match="cannot be written"), held(Path("/proc/none/out"), "busy"):
        pass
