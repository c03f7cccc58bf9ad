"""Several processes of one launch share a plan: real ones over torch's store, killed and started again; rows stay one process's."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from ssmax_eval import cli
from ssmax_eval.cli import main
from ssmax_eval.disk import HALF, LOCK, whole
from ssmax_eval.errors import UserError
from ssmax_eval.launch import Processes, launched
from ssmax_eval.processes import Lost, Together
from ssmax_eval.results import find_runs
from ssmax_eval.stopping import STOPPED
from ssmax_eval.store import Run, line_of

GRID = "--context-lengths 96,128 --depth-percents 0,50,100 --trials 60 --batch-size 1 --no-report".split()
NAMES = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Start each test outside of any launcher, and take away what it tells libraries."""
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def alone(*words):
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 0


def torchrun(count, *words, program=("-m", "ssmax_eval")):
    """Run the command line in `count` processes of torchrun's; return exit code, stdout and what we ourselves say on stderr."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*launcher, *program, *map(str, words)], capture_output=True, text=True, timeout=240, env=environment()
    )
    return done.returncode, done.stdout, said(done.stderr)


def said(err):
    return [line for line in err.splitlines() if line.startswith("ssmax-eval: ")]


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def srun(count, *words):
    """Start the command line as srun starts a step's tasks."""
    job = str(time.monotonic_ns() // 1000)  # by which the port is chosen
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "ssmax_eval", *map(str, words)],
            env=environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def rows_of(folder):
    """Return the bytes of each run's rows by probe, of a folder that holds nothing but finished runs."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"rows.jsonl", "run.json"}
    return {file.parent.parent.name: file.read_bytes() for file in files if file.name == "rows.jsonl"}


def split(whole_run, folder, count, keep=0.6):
    """Leave a run as `count` processes leave it when they are killed: a part of the rows in files of their own, the last line half."""
    lines = whole_run.rows_path.read_bytes().splitlines(keepends=True)
    run = Run(folder / whole_run.folder.parent.name / whole_run.run_id)
    run.folder.mkdir(parents=True)
    run.rows_path.touch()
    for rank in range(count):
        own = lines[rank : int(keep * len(lines)) : count]
        (run.folder / f"rows.{rank}.jsonl").write_bytes(b"".join(own)[:-7])
    return run


@pytest.fixture(scope="module")
def needle(checkpoint, tmp_path_factory):
    """Return the words of a command, and the run that one process makes of it."""
    folder = tmp_path_factory.mktemp("one")
    words = ["needle", "--model", checkpoint, *GRID]
    alone(*words, "--output-path", folder)
    return words, Run(next(folder.rglob("rows.jsonl")).parent)


# which process this is


def test_a_process_alone_is_the_first_of_one():
    assert launched() == Processes(0, 1, 0, 1)
    assert launched().device("auto") == "auto"


def test_torchrun_and_accelerate_tell_the_rank(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(5, 8, 1, 4)
    assert not launched().is_first


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ({"SLURM_NNODES": "1", "SLURM_NODELIST": "n7"}, "127.0.0.1"),
        ({"SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NODELIST": "gpu[04-05,11],big1"}, "gpu04"),
        ({"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "a-1,b-2"}, "a-1"),
        ({"MASTER_ADDR": "mine"}, "mine"),
    ],
)
def test_srun_tells_it_too(monkeypatch, told, address):
    job = {
        "SLURM_PROCID": "2",
        "SLURM_NTASKS": "6",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "3",
    }
    for name, value in {**job, "SLURM_STEP_TASKS_PER_NODE": "2(x3)", **told}.items():
        monkeypatch.setenv(name, value)
    assert launched() == launched() == Processes(2, 6, 0, 2)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == (address, "19570")


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4"},  # the shell of salloc
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"},  # the script of sbatch
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_what_is_no_task_of_several_is_alone(monkeypatch, told):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launched().count == 1


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "x"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "5", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "?"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},  # mpirun, whose processes would each do all
        {"PMI_SIZE": "4", "WORLD_SIZE": "1"},
    ],
)
@pytest.mark.parametrize("command", ["needle", "train"])
def test_what_no_launcher_tells_is_one_line(monkeypatch, capsys, tmp_path, told, command):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    words = {"needle": ["--output-path"], "train": ["--recipe", "smoke", "--out"]}
    with pytest.raises(SystemExit) as stop:
        main([command, *words[command], str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert re.fullmatch(r"ssmax-eval: error: (RANK|WORLD_SIZE|LOCAL_RANK|OMPI_COMM_WORLD_SIZE|PMI_SIZE) .*\n", err)
    assert not (tmp_path / "out").exists()


TRAINING = "train --recipe smoke --set steps=2 --set text_characters=20000 --set vocabulary=300 --out".split()


def test_a_rank_that_no_launcher_set_is_not_waited_for(monkeypatch, tmp_path):
    """A shell of a cluster can keep it: accelerate would look for the other processes, and end in a traceback or never."""
    monkeypatch.setenv("LOCAL_RANK", "9")
    with pytest.raises(SystemExit) as stop:
        main([*TRAINING, str(tmp_path / "out")])
    assert stop.value.code == 0


def test_what_libraries_cannot_follow_in_the_environment_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "nonsense")
    with pytest.raises(SystemExit) as stop:
        main([*TRAINING, str(tmp_path / "out")])
    assert stop.value.code == 2
    assert re.fullmatch(
        r"ssmax-eval: error: training: it cannot be set up here \(ValueError: .*\n", capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_not_told_where_the_others_are_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        main(["needle", "--output-path", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert "MASTER_ADDR" in err
    assert not (tmp_path / "out").exists()


# who takes which batch


def test_each_batch_is_taken_once(tmp_path):
    from torch.distributed import HashStore

    store, taken = HashStore(), [[], [], []]

    def work(rank):
        group = Together(Processes(rank, 3), tmp_path)
        group.store = store
        for batches in (100, 50):  # two runs, one after the other
            claim = group.claims()
            taken[rank].append([batch for batch in range(batches) if claim()])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run, batches in enumerate((100, 50)):
        assert sorted(batch for own in taken for batch in own[run]) == [*range(batches)]


# a run's files


def row(sample, error=None, **more):
    told = {"model": "m", "attention": "softmax", "rope": "as trained", "context_length": 9}
    return {"sample": sample, "correct": None if error else True, **told, "error": error, **more}


def test_rows_of_all_processes_are_the_runs(tmp_path):
    run = Run(tmp_path / "needle" / "abc")
    with run.writer() as writer:
        writer.append([row("d"), row("a", "out of memory")])
    with run.writer(process=0) as first, run.writer(process=1) as second:
        first.append([row("c")])
        second.append([row("a"), row("d", "out of memory")])
        assert {each["sample"]: each["error"] for each in run.rows()} == {"d": None, "a": None, "c": None}
    with (run.folder / "rows.1.jsonl").open("ab") as file:
        file.write(line_of(row("b"))[:-4])  # of a process that was killed
    assert len(run.rows()) == 3
    with run.writer() as writer:
        writer.append([row("b")])
        assert [each["sample"] for each in writer.gather("abcd")] == [*"abcd"]
    assert [file.name for file in run.folder.iterdir()] == ["rows.jsonl"]
    assert [each["sample"] for each in run.rows()] == [*"abcd"]


@pytest.mark.parametrize("step", range(3))
def test_gathering_can_be_stopped_at_any_moment(tmp_path, monkeypatch, step):
    """Before rows.jsonl is replaced, and before either process's file is taken away."""
    run = Run(tmp_path / "needle" / "abc")
    with run.writer(process=0) as first, run.writer(process=1) as second:
        first.append([row("a")])
        second.append([row("b")])
        steps = iter(range(3))

        def stop(right):
            def step_or_stop(*arguments):
                if next(steps) == step:
                    raise KeyboardInterrupt
                return right(*arguments)

            return step_or_stop

        with monkeypatch.context() as patch:
            patch.setattr("ssmax_eval.store.whole", stop(whole))
            patch.setattr(Path, "unlink", stop(Path.unlink))
            with pytest.raises(KeyboardInterrupt):
                first.gather("ab")
    assert len(run.rows()) == 2
    assert not run.is_complete
    left = run.folder / f"{HALF}x"
    left.mkdir()
    (left / "rows.jsonl").touch()  # of a process that was killed just then
    (left / LOCK).touch()
    assert [found.folder for found in find_runs(tmp_path)] == [run.folder]
    with run.writer() as writer:
        assert len(writer.gather("ab")) == 2
    assert [file.name for file in run.folder.iterdir()] == ["rows.jsonl"]


def test_rows_that_no_process_made_are_not_passed_over(tmp_path):
    run = Run(tmp_path / "needle" / "abc")
    with run.writer(process=0) as writer:
        writer.append([row("a")])
        with pytest.raises(UserError, match="1 of 2 rows are missing"):
            writer.gather("ab")
    assert len(run.rows()) == 1


def test_fresh_takes_the_files_of_all_processes_away(tmp_path):
    run = Run(tmp_path / "needle" / "abc")
    with run.writer(process=0) as first, run.writer(process=1) as second:
        first.append([row("a")])
        second.append([row("b")])
    with run.writer(fresh=True, process=0), run.writer(fresh=True, process=1):
        assert run.rows() == []


def test_a_process_that_outlives_its_launch_keeps_others_out(tmp_path):
    run = Run(tmp_path / "needle" / "abc")
    with run.writer(process=0), run.writer(process=1):
        for process in (None, 0, 1):
            with pytest.raises(UserError, match="another process"), run.writer(process=process):
                pass
    run.folder.mkdir(exist_ok=True)
    stray = FileLock(run.folder / f"{LOCK}.1")
    with stray, pytest.raises(UserError, match="another process"), run.writer(fresh=True):
        pass


# together


def test_two_processes_make_one_processes_rows(checkpoint, tmp_path):
    """Of all probes: needle and attention in one forward, needed scale, loss."""
    words = ["run", "--model", checkpoint, "--context-lengths", "96,128", "--trials", "3", "--documents", "5"]
    words += ["--window", "16", "--batch-size", "2"]
    alone(*words, "--no-report", "--output-path", tmp_path / "one")
    code, out, err = torchrun(2, *words, "--output-path", tmp_path / "two")
    assert code == 0
    page = Path(out.splitlines()[-1])
    page.unlink()
    page.parent.rmdir()
    assert [line.split(":")[1] for line in err if "note" not in line] == [" cost"]  # of one process
    assert out.count("run ") == 3
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert set(one) == {"attention", "needed-scale", "loss"}
    assert one == two
    for folder, told in ((tmp_path / "one", None), (tmp_path / "two", 2)):
        assert [json.loads(file.read_text()).get("processes") for file in folder.rglob("run.json")] == [told] * 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_the_same_command_goes_on(needle, tmp_path, victim):
    words, one = needle
    words = [*words, "--output-path", tmp_path]
    processes = srun(2, *words)
    while not any(file.stat().st_size for file in tmp_path.rglob(f"rows.{victim}.jsonl")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    processes[victim].send_signal(signal.SIGKILL)
    outs = [process.communicate(timeout=120) for process in processes]
    assert (processes[victim].returncode, processes[1 - victim].returncode) == (-signal.SIGKILL, 2)
    errors = [line for _, err in outs for line in said(err) if "error" in line]
    line = f"process {victim} of 2 has ended before it was done; the same command goes on where it stopped"
    assert errors == [f"ssmax-eval: error: {line}"]
    assert "Traceback" not in outs[1 - victim][1]
    stopped = Run(tmp_path / "needle" / one.run_id)
    assert not stopped.is_complete
    assert 0 < len(stopped.rows()) <= len(one.rows())  # all of them, if it was killed between two batches
    alone(*words)
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}


def test_one_process_finishes_what_three_began(needle, tmp_path):
    words, one = needle
    run = split(one, tmp_path, 3)
    assert 0 < len(run.rows()) < len(one.rows())
    alone("report", tmp_path, "--out", tmp_path / "page.html")  # a started run can be read
    (tmp_path / "page.html").unlink()
    alone(*words, "--output-path", tmp_path)
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize(("began", "finish"), [(1, 2), (2, 3), (3, 2)])
def test_any_number_finishes_what_any_number_began(needle, tmp_path, began, finish):
    words, one = needle
    run = split(one, tmp_path, began)
    if began == 1:
        (run.folder / "rows.0.jsonl").replace(run.rows_path)
    code, out, _ = torchrun(finish, *words, "--output-path", tmp_path)
    assert (code, out.count("run ")) == (0, 1)
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}
    record = json.loads((run.folder / "run.json").read_text())
    assert 0 < record["rows_from_earlier_processes"] < record["rows"]
    again = torchrun(2, *words, "--output-path", tmp_path)  # nothing is left to do
    assert (again[0], again[2]) == (0, [])
    fresh = torchrun(2, *words, "--output-path", tmp_path, "--fresh")
    assert fresh[0] == 0
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}
    assert json.loads((run.folder / "run.json").read_text())["rows_from_earlier_processes"] == 0


def test_a_lost_process_is_said_by_one_that_its_launcher_stops(monkeypatch, capsys):
    """The launcher's signal is where the error comes from: it is no interruption by the user for that."""

    def stopped(*_, **__):
        try:
            raise SystemExit(STOPPED)
        except SystemExit as error:
            raise Lost("process 1 of 3 has ended") from error

    monkeypatch.setattr(cli, "app", stopped)
    assert cli.run(["needle"]) == 2
    assert capsys.readouterr().err == "ssmax-eval: error: process 1 of 3 has ended\n"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_stops_the_others_and_one_of_them_says_why(needle, tmp_path, victim):
    words, one = needle
    words = [*words, "--output-path", tmp_path]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "-m",
        "ssmax_eval",
    ]
    run = subprocess.Popen(
        [*launcher, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while not any(file.stat().st_size for file in tmp_path.rglob(f"rows.{victim}.jsonl")):
        assert run.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    rank = {
        int(re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{child}/environ").read_bytes())[1]): int(child)
        for child in children
        if b"\0RANK=" in Path(f"/proc/{child}/environ").read_bytes()
    }
    os.kill(rank[victim], signal.SIGKILL)
    _, err = run.communicate(timeout=120)
    line = f"process {victim} of 3 has ended before it was done; the same command goes on where it stopped"
    assert [line for line in said(err) if "error" in line] == [f"ssmax-eval: error: {line}"]
    assert torchrun(2, *words)[0] == 0
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}


@pytest.mark.slow
def test_a_mistake_is_said_once_and_what_is_not_shared_is_done_once(checkpoint, tmp_path):
    words = ["needle", "--model", checkpoint, "--output-path", tmp_path / "out"]
    for wrong in (["--context-lengths", "3"], ["--context-lengths", "x"], ["--nonsense"]):
        code, out, err = torchrun(2, *words, *wrong)
        assert (code, out, len(err)) == (1, "", 1)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    code, _, err = torchrun(2, *words[:-1], tmp_path / "file" / "out")
    assert (code, len(err)) == (1, 1)
    for command in (["mechanisms", "--json"], [*words, "--dry-run", "--json"], ["models", "--json"]):
        code, out, err = torchrun(2, *command)
        assert (code, err) == (0, [])
        json.loads(out)


@pytest.mark.slow
def test_two_launches_do_not_write_one_run(needle, tmp_path):
    words, one = needle
    run = Run(tmp_path / "needle" / one.run_id)
    with run.writer():
        code, _, err = torchrun(2, *words, "--output-path", tmp_path)
    assert (code, [line for line in err if "error" in line]) == (
        1,
        [f"ssmax-eval: error: run {run.folder}: another process is writing it; wait for it to end"],
    )


PROGRAM = """
import sys, ssmax_eval
from ssmax_eval.launch import launched
for probe in (ssmax_eval.needle, ssmax_eval.attention):
    frame = probe(sys.argv[1], context_lengths=[96], depth_percents=[0, 100], trials=4, batch_size=1, output_path=sys.argv[2])
    frame.drop(columns="run_id", errors="ignore").to_json(f"{sys.argv[2]}/{probe.__name__}-{launched().rank}.json")
"""


@pytest.mark.slow
def test_python_functions_return_the_same_rows_in_all_processes(checkpoint, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "out").mkdir()
    assert torchrun(2, checkpoint, tmp_path / "out", program=(tmp_path / "program.py",))[0] == 0
    for name in ("needle", "attention"):
        first, second = ((tmp_path / "out" / f"{name}-{rank}.json").read_text() for rank in (0, 1))
        assert first == second


@pytest.mark.slow
def test_terminated_in_order_a_command_goes_on_later(needle, tmp_path):
    words, one = needle
    words = [*words, "--output-path", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssmax_eval", *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment()
    )
    while not any(file.stat().st_size for file in tmp_path.rglob("rows.jsonl")):
        assert process.poll() is None
        time.sleep(0.005)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said(err)[-1] == "ssmax-eval: interrupted; the same command goes on where this one stopped"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["rows.jsonl"]
    alone(*words)
    assert rows_of(tmp_path) == {"needle": one.rows_path.read_bytes()}
