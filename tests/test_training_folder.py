"""What an attack on training got through: nothing of others lost, no broken model called finished, damage said in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from test_training import TINY, tiny  # noqa: F401

from ssmax_eval.cli import main
from ssmax_eval.disk import HALF, LOCK
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import learned_of
from ssmax_eval.models.load import load_model
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.training.folder import held
from ssmax_eval.training.job import Job
from ssmax_eval.training.jobs import swapped_after
from ssmax_eval.training.train import train

SMALL = [part for key, value in (TINY | {"steps": "8"}).items() for part in ("--set", f"{key}={value}")]


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code, capsys.readouterr().err


def test_a_strangers_folder_where_configuration_e_would_go_is_left_alone(capsys, tmp_path, checkpoint):
    stranger = tmp_path / "cpu-ssmax-after-s0"
    stranger.mkdir()
    for file in checkpoint.iterdir():
        (stranger / file.name).write_bytes(file.read_bytes())
    code, err = call(capsys, "train", "--recipe", "cpu", "--paper", *SMALL, "--out", tmp_path, "--device", "cpu")
    assert code == 2
    assert "something else than configuration (e)" in err
    assert {file.name for file in stranger.iterdir()} == {file.name for file in checkpoint.iterdir()}
    assert [folder.name for folder in tmp_path.iterdir()] == ["cpu-ssmax-after-s0"]


@pytest.mark.parametrize("fresh", [False, True])
def test_the_start_model_is_never_written_over(tiny, tmp_path, fresh):  # noqa: F811
    folder = train(Job(tiny), tmp_path / "a", "cpu")
    for out in (folder, folder / "inside", tmp_path):
        with pytest.raises(UserError, match="the model to start from is there"):
            train(Job(tiny, "ssmax", start=str(folder)), out, "cpu", fresh)
    load_model(str(folder))


def test_not_finite_is_seen_in_the_log(tmp_path):
    from transformers import TrainerControl, TrainerState

    from ssmax_eval.training.recipes import recipe
    from ssmax_eval.training.trainer import Watch

    watch = Watch(torch.nn.Linear(1, 1), recipe("smoke"), "x", tmp_path / "log")
    with pytest.raises(UserError, match="not finite at step 0"):
        watch.on_log(None, TrainerState(), TrainerControl(), logs={"loss": float("nan")})


def test_two_processes_never_train_into_one_folder(tiny, tmp_path):  # noqa: F811
    code = (
        "import sys, time; from pathlib import Path; from ssmax_eval.training.folder import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ,
    )
    try:
        assert other.stdout.readline() == b"held\n"
        for fresh in (True, False):  # and who is refused takes nothing away, empty as the folder still is
            with pytest.raises(UserError, match="another process is training into it"):
                train(Job(tiny), tmp_path / "out", "cpu", fresh)
            assert (tmp_path / "out").is_dir()
    finally:
        other.communicate()
    assert not (tmp_path / "out").exists()
    with held(tmp_path / "out"):
        pass


def test_configuration_e_is_not_made_beside_another_process(tiny, tmp_path):  # noqa: F811
    folder = train(Job(tiny), tmp_path / "cpu-softmax-s0", "cpu")
    out = swapped_after(folder, Job(tiny))
    train(Job(tiny), folder, "cpu", fresh=True)
    with held(folder), pytest.raises(UserError, match="another process"):
        swapped_after(folder, Job(tiny))
    load_model(str(out))


# a retrofit that, with its model loaded, waits for a line before it saves
SLOW = """
import sys
from ssmax_eval.models import retrofit
save = retrofit.save_model
def slow(*arguments):
    print("loaded", flush=True)
    sys.stdin.readline()
    return save(*arguments)
retrofit.save_model = slow
from ssmax_eval.cli import main
main(["retrofit", "--model", sys.argv[1], "--attention", "ssmax:s=0.1", "--out", sys.argv[2]])
"""


def test_of_two_retrofits_into_one_folder_one_is_there_whole(tmp_path, checkpoint):
    out = tmp_path / "new" / "model"
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(checkpoint), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert slow.stdout.readline() == "loaded\n"
        retrofit(str(checkpoint), "ssmax:s=0.2", out)
    finally:
        _, err = slow.communicate("go\n")
    assert slow.returncode == 2
    assert "not empty; give another folder" in err
    assert [file.name for file in out.parent.iterdir()] == ["model"]
    learned = learned_of(load_model(str(out))[0])
    assert {round(s, 6) for mechanism in learned.values() for s in mechanism["s"]} == {0.2}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError("no space left")])
def test_a_retrofit_that_stops_leaves_nothing(tmp_path, checkpoint, monkeypatch, stop):
    def stopped(model, tokenizer, folder):
        model.save_pretrained(folder)
        raise stop

    monkeypatch.setattr("ssmax_eval.models.retrofit.save_model", stopped)
    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else UserError):
        retrofit(str(checkpoint), "ssmax", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_process_was_killed_while_it_wrote_is_no_strangers(tiny, tmp_path, checkpoint):  # noqa: F811
    for made in (lambda out: train(Job(tiny), out, "cpu"), lambda out: retrofit(str(checkpoint), "ssmax", out)):
        left = tmp_path / "out" / f"{HALF}x"
        left.mkdir(parents=True)
        (left / LOCK).touch()
        (left / "training.json").touch()
        made(tmp_path / "out")
        assert not left.exists()
        assert (tmp_path / "out" / "model.safetensors").is_file()
        shutil.rmtree(tmp_path / "out")


def test_a_model_that_lost_its_weights_is_trained_again(tiny, tmp_path):  # noqa: F811
    folder = train(Job(tiny), tmp_path / "a", "cpu")
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    train(Job(tiny), folder, "cpu")
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("training_log.jsonl", b'{"step": 1\n{"step": 2}\n'),
        ("training_log.jsonl", b"\xff\xfe\n"),
        ("training.json", b"5"),
        ("training.json", b"[]"),
    ],
)
def test_damage_is_one_clear_error(tiny, tmp_path, file, text):  # noqa: F811
    folder = tmp_path / "a"
    train(Job(tiny), folder, "cpu")
    record = json.loads((folder / "training.json").read_text()) | {"finished": False}
    (folder / "training.json").write_text(json.dumps(record))
    (folder / file).write_bytes(text)
    with pytest.raises(UserError, match="--fresh|something else"):
        train(Job(tiny), folder, "cpu")


def test_retrofit_keeps_what_the_same_mechanism_learned(tmp_path, tiny):  # noqa: F811
    folder = train(Job(tiny, "ssmax"), tmp_path / "a", "cpu")
    same, other = (
        retrofit(str(folder), "ssmax", tmp_path / "same"),
        retrofit(str(folder), "ssmax:s=0.5", tmp_path / "other"),
    )
    assert learned_of(load_model(str(same))[0]) == learned_of(load_model(str(folder))[0])
    assert {s for mechanism in learned_of(load_model(str(other))[0]).values() for s in mechanism["s"]} == {0.5}
    assert not list(tmp_path.glob(".*"))


def test_the_shape_of_a_start_model_is_not_the_recipes(tiny, tmp_path, checkpoint):  # noqa: F811
    folder = train(Job(tiny, "ssmax", start=str(checkpoint)), tmp_path / "a", "cpu")
    assert "layers" not in json.loads((folder / "training.json").read_text())["job"]["recipe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "{checkpoint}"], "recipe field feed_forward: the model to start from has its shape"),
        (["--swap-to", "ssmax", "--swap-fraction", "0.01"], "it leaves none before or after the swap"),
        (["--set", "seed=1"], "recipe field 'seed'"),
        (["--set", "layers=1"], "recipe field layers: given twice"),
        (["--text", "bible", "--set", "text=generated"], "recipe field text: given twice"),
        (["--text", ""], "recipe text ''"),
        (["--set", "learning_rate=nan"], "recipe learning_rate nan"),
        (["--set", "betas=5:5"], "recipe betas 5"),
        (["--set", "rope_theta=0"], "recipe rope_theta 0"),
        (["--set", "weight_decay=-1"], "recipe weight_decay -1"),
        (["--seed", str(2**32)], "seed 4294967296"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(capsys, tmp_path, checkpoint, arguments, message):
    given = [argument.format(checkpoint=checkpoint) for argument in arguments]
    code, err = call(capsys, "train", "--recipe", "cpu", *SMALL, *given, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("study", ["league", "paper"])
def test_studies_refuse_a_field_that_is_given_twice_as_train_does(capsys, tmp_path, study):
    paths = ("--models-path", tmp_path / "models", "--output-path", tmp_path / "out", "--out", tmp_path / "page.html")
    code, err = call(capsys, study, "--recipe", "cpu", "--set", "layers=1", "--set", "layers=2", *paths)
    assert code == 2
    assert "recipe field layers: given twice; give it once" in err
    assert not [*tmp_path.iterdir()]
