"""The campaign of attacks (tests/attack): that it sees what is wrong, and a small slice of it."""

import signal

import pytest
from attack.__main__ import campaign
from attack.every import every
from attack.trial import MARK, Ended, Step, wrong, wrong_in
from attack.world import World


@pytest.mark.parametrize(
    ("step", "ended", "says"),
    [
        ({}, {"code": 1}, "exit code 1"),
        ({}, {"err": "Traceback (most recent call last):\nValueError: x\n"}, "a traceback: ValueError: x"),
        ({}, {"code": 2}, "without a line that says why"),
        ({"must": 0}, {"code": 2, "err": "ssmax-eval: error: x\n"}, "exit code 2"),
        ({}, {"code": -9}, "exit code -9"),
        ({}, {"seconds": 61.0}, "a hang"),
        ({}, {"memory": 5 * 2**20}, "5.0 GiB"),
        ({}, {"out": "a\x1b[31m"}, "a control character"),
        ({}, {"err": "a\u202e"}, "a control character"),
        ({}, {}, None),
        ({}, {"code": 2, "err": "ssmax-eval: error: x\n"}, None),
        (
            {},
            {"code": 1, "err": "Fatal Python error: init_import_site: x\nTraceback (most recent call last):\nOSError"},
            None,
        ),
        (
            {},
            {"code": 1, "err": "Fatal Python error: init_x\nTraceback (most recent call last):\n ssmax_eval/cli.py\nE"},
            "a traceback",
        ),
        ({"stop": (signal.SIGTERM, 0.1)}, {"code": 143}, None),
        ({"stop": (signal.SIGTERM, 0.1)}, {"code": 130}, "exit code 130"),
    ],
)
def test_what_is_wrong_is_seen(step, ended, says):
    found = wrong(Step(["x"], **step), Ended(**{"code": 0, "out": "", "err": "", "seconds": 0.1, "memory": 1} | ended))
    assert (found is None) if says is None else says in found


def test_a_page_that_is_half_or_open_is_seen(tmp_path):
    page = tmp_path / "x.html"
    for text, says in (("<html>", "a half page"), (f"{MARK}></html>", "not escaped"), ("</html>\n", None)):
        page.write_text(text)
        assert (found := wrong_in(tmp_path, {})) == says or says in found
    page.write_text("x")
    assert wrong_in(tmp_path, {page: "x"}) is None  # the attack's own, which nothing wrote over
    assert wrong_in(tmp_path, {page: "y"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_slice_of_the_campaign_and_of_every_value(tmp_path):
    world = World(tmp_path)  # takes longer than what follows
    assert campaign(world, trials=7, seed=0, through_cli=False, kinds=[]) == []
    assert every(world, share=331) == []
