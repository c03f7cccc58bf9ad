"""Each named trap's test is seen to fail with its fault put in: the check that the checks can fail."""

import re

import pytest
from faults import FAULTS
from faulty import Server, file_of, found

# whose libraries the server could lack: without a fault they pass there
SOUND = ("test_first_weights", "test_the_exponents_interval_is", "test_theta_factors_are", "test_mechanisms_and_rope")


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.mark.parametrize("test", FAULTS)
def test_seam_and_test_exist(test):
    assert file_of(test)
    if FAULTS[test].seam.startswith("harness."):
        pytest.importorskip("lm_eval")
    found(FAULTS[test].seam)


@pytest.mark.slow
@pytest.mark.parametrize("test", SOUND)
def test_without_a_fault_the_tests_pass(test, server, tmp_path):
    code, out = server.run(test, tmp_path, faulty=False)
    assert code in (0, 5), out[-2000:]  # 5: none left, for want of lm-eval


@pytest.mark.slow
@pytest.mark.parametrize("test", FAULTS)
def test_fault_is_caught(test, server, tmp_path):
    code, out = server.run(test, tmp_path, faulty=True)
    assert code == 1, f"the fault at {FAULTS[test].seam} was not caught:\n{out[-2000:]}"
    assert " failed" in out
    assert "errors during collection" not in out
    broken = re.search(r"^tests/faults\.py:\d+: \w+", out, re.MULTILINE)
    assert not broken, f"the fault itself fails:\n{out[-2000:]}"
