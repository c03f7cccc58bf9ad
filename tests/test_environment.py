"""What a record tells of the process that made it."""

import sys
from pathlib import Path

import pytest

from ssmax_eval.environment import command


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["needle", "--model", "ssmax-2m", "--rope-theta-factor", "1,10"],
            "needle --model ssmax-2m --rope-theta-factor 1,10",
        ),
        (
            ["needle", "--model", "a=/home/me/models/a", "--output-path", "/data/runs"],
            "needle --model a=a --output-path runs",
        ),
        (["needle", "--model={here}/models/a"], "needle --model=models/a"),
        (["needle", "--model", "{here}"], "needle --model ."),
        (
            ["lm-eval", "--model_args", "pretrained=/x/y,dtype=float32"],
            "lm-eval --model_args pretrained=y,dtype=float32",
        ),
        (["needle", "--model", "/home/me/mine.py:answer"], "needle --model mine.py:answer"),
        (
            ["needle", "--model", "http://host/v1#m", "--haystack", "~/text/"],
            "needle --model 'http://host/v1#m' --haystack text",
        ),
        (
            ["needle", "--model", "org/name", "--haystack", "../book.txt"],
            "needle --model org/name --haystack ../book.txt",
        ),
    ],
)
def test_a_command_tells_no_more_of_a_path_than_reproduces_it(monkeypatch, given, told):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ssmax-eval", *(each.format(here=Path.cwd()) for each in given)])
    assert command() == f"ssmax-eval {told}"


def test_another_programs_command_is_not_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "-q"])
    assert command() is None
