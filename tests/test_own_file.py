"""What runs of a user's file is what the file says: as it was read, and not what Python imported before an edit."""

import importlib
import sys

import pytest

from ssmax_eval.errors import UserError
from ssmax_eval.models.foreign import function
from ssmax_eval.own_file import file_of, run_file

TEXT = """
from dataclasses import dataclass

def helper(context):
    return "one"

def answer(context, question):
    return helper(context)

@dataclass
class Own:
    scale: float = 1.0

    @property
    def twice(self):
        return 2 * self.scale
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (tmp_path / "theirs.py").write_text(TEXT)
    yield importlib.import_module("theirs")
    del sys.modules["theirs"]


@pytest.mark.parametrize(
    "change", [('"one"', '"two"'), ("2 * self", "3 * self"), ("def helper", "\n\ndef helper"), ("= 1.0", "= 2.0")]
)
@pytest.mark.parametrize("name", ["answer", "Own"])
def test_a_file_that_was_edited_since_its_import_is_not_what_runs(module, tmp_path, name, change):
    file = tmp_path / "theirs.py"
    before = file_of(getattr(module, name))
    assert before[0] == file
    file.write_text(TEXT.replace(*change))
    assert file_of(getattr(module, name)) is None
    module = importlib.reload(module)
    after = file_of(getattr(module, name))
    assert after[0] == file
    assert after[1] != before[1]
    file.write_text("def answer(")
    assert file_of(getattr(module, name)) is None
    file.unlink()
    assert file_of(getattr(module, name)) is None


def test_a_function_imported_before_the_edit_is_no_function_of_a_file(module, tmp_path):
    assert function(module.answer, "f", None).file[0] == "theirs.py"
    (tmp_path / "theirs.py").write_text(TEXT.replace("one", "two"))
    assert function(module.answer, "f", None).file is None


def test_a_file_runs_as_it_was_read_or_is_no_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("value = 2")
    assert run_file(file, b"value = 1", "mine_as_read").value == 1
    with pytest.raises(ZeroDivisionError):
        run_file(file, b"1 / 0", "mine_broken")
    assert "mine_broken" not in sys.modules
    with pytest.raises(UserError, match="no Python file; its name has to end in .py"):
        run_file(tmp_path / "mine.txt", b"value = 1", "mine_text")
