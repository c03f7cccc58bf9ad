"""A training logs nowhere but to its own file, unless asked: then by transformers' integrations, and beside the model."""

import pytest
from test_readme import TINY
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import ssmax_eval
from ssmax_eval.training.loggers import TENSORBOARD


def test_a_training_logs_where_it_is_asked_to(tmp_path, monkeypatch):
    told = []

    class Board(integration_utils.TensorBoardCallback):
        """TensorBoard's, without its package."""

        def __init__(self):
            self.tb_writer, self.logging_dir = None, None

        def on_train_begin(self, args, state, control, **_):
            told.append((self.logging_dir, args.run_name))

        def on_log(self, args, state, control, logs=None, **_):
            told.append({**logs})

        def on_train_end(self, *_, **__):
            pass

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Board)
    small = {**TINY, "steps": 4}
    folder = ssmax_eval.train("smoke", out=tmp_path / "logged", log_to=["tensorboard", "tensorboard"], **small)
    assert told[0] == (str(folder / TENSORBOARD), "smoke-softmax-s0")
    assert {"loss", "recall", "learning_rate"} <= set(told[1])
    count = len(told)
    plain = ssmax_eval.train("smoke", out=tmp_path / "plain", **small)
    assert len(told) == count
    # what is logged changes no weight and no record of what was trained
    files = [(each / "model.safetensors").read_bytes() for each in (folder, plain)]
    assert files[0] == files[1]


def test_what_cannot_be_logged_to_is_one_line(tmp_path, monkeypatch):
    class Missing(TrainerCallback):
        def __init__(self):
            raise RuntimeError("WandbCallback requires wandb to be installed.\nRun `pip install wandb`.")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Missing)
    for name, says in (
        ("tensorbord", "log to 'tensorbord': allowed are .*; did you mean tensorboard?"),
        (
            "wandb",
            r"log to 'wandb': it cannot be used here \(WandbCallback requires wandb to be installed. Run `pip install wandb`.\)",
        ),
    ):
        with pytest.raises(ssmax_eval.UserError, match=says):
            ssmax_eval.train("smoke", out=tmp_path / "no", log_to=name, **TINY)
    assert not (tmp_path / "no").exists()
