"""Train a recipe with a mechanism: text, tokenizer, model, transformers' Trainer, a checkpoint that loads everywhere."""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

from ..disk import contents, is_full
from ..environment import environment
from ..errors import UserError, is_out_of_memory
from ..launch import launched
from ..mechanisms.attach import attach, learned_of
from ..models.checkpoint import cast, refuse_unsavable, save_model, try_saving, with_mechanism
from ..models.load import load_model, pick_device
from ..models.sources import resolve
from ..progress import Progress
from .architecture import bias_of, build, check_position, position_of
from .corpus import Corpus, read_sentences, train_tokenizer
from .examples import Examples, collate
from .folder import LOG, WORK, held, occupied, read_log, whole_checkpoints, write_log, write_record
from .job import Job
from .length import continue_at
from .loggers import check_loggers, keep_logs
from .signs import signs
from .throughput import throughput
from .trainer import LateMechanism, Watch, WeightedTrainer

LOG_AT_LEAST = 20  # times in a run


def train(
    job: Job,
    folder: Path,
    device: str = "auto",
    fresh: bool = False,
    compiled: bool | None = None,
    progress: Progress | None = None,
    log_to: Sequence[str] = (),
) -> Path:
    """Train one model into `folder` and return it; a run that was stopped goes on, a finished one is left alone.

    The weights are those of an uninterrupted run. compiled: by torch.compile; None does so on CUDA. progress: in steps, of
    several trainings of which this is one. log_to: transformers' integrations (loggers.py). Raises UserError, also for a folder
    that holds another run.
    """
    # all that can be wrong is, before anything is written
    processes = launched().count
    if processes > 1 and (missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]):
        raise UserError(
            f"processes {processes}: {missing[0]} is not set; torchrun and accelerate launch set it, srun needs not"
        )
    where = pick_training_device(device)
    if job.recipe.batch_size % processes:
        raise UserError(
            f"processes {processes}: they must divide the recipe's {job.recipe.batch_size} sequences a step; "
            "start fewer, or --set tokens_per_step"
        )
    if fresh and processes > 1:
        raise UserError("--fresh: not with several processes; remove the folder first")
    log_to = check_loggers(log_to)
    refuse_overlap(job, folder)
    sentences, text_sha256 = read_sentences(job.recipe)
    with held(folder):
        return train_held(job, folder, where, fresh, compiled, sentences, text_sha256, progress, log_to)


def train_held(
    job: Job,
    folder: Path,
    where: torch.device,
    fresh: bool,
    compiled: bool | None,
    sentences: list[str],
    text_sha256: str,
    progress: Progress | None = None,
    log_to: Sequence[str] = (),
) -> Path:
    """Train into a folder that no other process writes to."""
    key = job.key(text_sha256)
    if occupied(folder, key, fresh):
        shutil.rmtree(folder / WORK, ignore_errors=True)  # of a process that was killed when all else was done
        if progress is not None:
            progress.skip(job.recipe.steps)
        return folder
    model, tokenizer = first_model(job, sentences)
    examples = Examples(job.recipe, Corpus.encode(tokenizer, sentences, text_sha256), job.seed)
    examples.check()
    compiled = where.type == "cuda" if compiled is None else compiled
    trainer = trainer_of(job, model, examples, folder, where, compiled, log_to)
    if fresh:
        for entry in contents(folder):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if launched().is_first:
        write_record(folder, {"job": key, "finished": False})
    seconds = run(trainer, job, model, folder, compiled, progress)
    if not launched().is_first:
        return folder
    log = read_log(folder / LOG)
    finished = {
        "job": key,
        "finished": True,
        "task": job.recipe.task,
        "attention": (getattr(model.config, "ssmax", None) or {"attention": "softmax"})["attention"],
        "text_tokens": len(examples.corpus.ids),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "throughput": throughput(model, job.recipe, log, where, torch.bfloat16 if bfloat16(where) else torch.float32),
        "last": log[-1],
        "learned": learned_of(model),
        "environment": environment(model),
    }
    rounded = where.type == "cuda" or bfloat16(where)
    made = save_model(
        cast(model.to("cpu"), torch.bfloat16 if rounded else torch.float32), tokenizer, folder / WORK / "model"
    )
    for file in made.iterdir():  # all of it is written before any of it is in its place
        os.replace(file, folder / file.name)
    write_record(folder, finished)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    with suppress(UserError, RuntimeError, MemoryError):  # a model that is trained is not lost by what is read of it
        write_record(folder, finished | {"signs": signs(model, tokenizer, started(job))})
    return folder


def started(job: Job) -> PreTrainedModel | None:
    """Return the model that a training went on from; None where it began with none."""
    return None if job.start is None else load_model(job.start, dtype="float32", device="cpu")[0]


def refuse_overlap(job: Job, folder: Path) -> None:
    """Raise UserError if the model that training starts from would be written over."""
    if job.start is None:
        return
    start, out = resolve(job.start).path.resolve(), folder.resolve()
    if start.is_relative_to(out) or out.is_relative_to(start):
        raise UserError(f"output {str(folder)!r}: the model to start from is there; give another folder")


def pick_training_device(device: str) -> torch.device:
    """Return the device of a training process; which of several GPUs is for CUDA_VISIBLE_DEVICES or torchrun to say."""
    where = pick_device(device)
    if where.type == "cuda" and where.index:
        raise UserError(f"device {device!r}: training takes the first; choose with CUDA_VISIBLE_DEVICES={where.index}")
    return where


def first_model(job: Job, sentences: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the float32 model that training begins with, its mechanism attached, and its tokenizer."""
    asked = job.attention if job.swap_to is None else job.swap_to
    if job.start is None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(job.recipe, sentences)
        model = build(job.recipe, tokenizer, job.seed)
        attach(model, asked or "softmax", bias=bias_of(job.recipe), seed=job.seed, lengths=job.recipe.lengths)
    else:
        model, tokenizer = load_model(job.start, dtype="float32", device="cpu")
        refuse_unsavable(model)
        try_saving(tokenizer)
        entry = getattr(model.config, "ssmax", None) or {"attention": "softmax"}
        keeps = asked is None or asked == entry["attention"]  # and what it learned
        check_position(asked or entry["attention"], position_of(model))
        continue_at(model, tokenizer, job.recipe.train_length, keeps)
        if not keeps:
            attach(model, asked or "softmax", bias=entry.get("position"), seed=job.seed, lengths=job.recipe.lengths)
    try_out(model)
    return with_mechanism(model), tokenizer


def try_out(model: PreTrainedModel) -> None:
    """Read and learn from a few tokens, so that a mechanism that cannot be run is refused before anything is written."""
    ids = torch.arange(1, 9)[None] % model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"attention: the model cannot be trained ({type(error).__name__}: {error})") from error
    model.zero_grad()


def trainer_of(
    job: Job,
    model: PreTrainedModel,
    examples: Examples,
    folder: Path,
    where: torch.device,
    compiled: bool,
    log_to: Sequence[str],
) -> WeightedTrainer:
    """Return transformers' Trainer, ready to begin. Raises UserError where libraries follow what the environment tells them, and cannot."""
    recipe = job.recipe
    cuda = where.type == "cuda"
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch_size // launched().count,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine_with_min_lr" if recipe.schedule == "cosine" else "constant_with_warmup",
            lr_scheduler_kwargs={"min_lr_rate": 0.1} if recipe.schedule == "cosine" else {},
            warmup_steps=recipe.warmup_steps,
            adam_beta1=recipe.betas[0],
            adam_beta2=recipe.betas[1],
            weight_decay=recipe.weight_decay,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=bfloat16(where),
            torch_compile=compiled,
            use_cpu=where.type == "cpu",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_num_workers=min(12, max(1, (os.cpu_count() or 1) // launched().count - 1)) if cuda else 0,
            dataloader_pin_memory=cuda,
            ddp_find_unused_parameters=job.swap_to is not None,
            logging_steps=max(1, min(20, recipe.steps // LOG_AT_LEAST)),
            save_steps=max(1, recipe.steps // 10),
            save_total_limit=1,
            logging_nan_inf_filter=False,  # a loss that is not finite is to be seen
            report_to=[*log_to] or "none",
            run_name=job.name,
            disable_tqdm=True,
            seed=job.seed,
        )
        # several GPUs are torchrun's to use; the Trainer would multiply the batch
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = WeightedTrainer(recipe, model=model, args=arguments, train_dataset=examples, data_collator=collate)
    except (ValueError, ImportError, RuntimeError) as error:  # all that we give is valid, so it comes from elsewhere
        if is_out_of_memory(error):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"training: it cannot be set up here ({type(error).__name__}: {why}); "
            "see which variables of accelerate or a launcher are set (env | grep -i -e accelerate -e rank), and unset them"
        ) from error
    # not before: it would be made at once, when no record says yet whose the folder is
    arguments.output_dir = str(folder / WORK)
    trainer.remove_callback(PrinterCallback)  # stdout is for results
    keep_logs(trainer, folder)
    return trainer


def run(
    trainer: WeightedTrainer, job: Job, model: PreTrainedModel, folder: Path, compiled: bool, progress: Progress | None
) -> float:
    """Train from the last checkpoint if there is one, and return the seconds of all parts."""
    whole = whole_checkpoints(folder / WORK)
    reached = max(whole, default=0)
    # what was logged after the checkpoint is computed again
    kept = [line for line in read_log(folder / LOG) if line["step"] <= reached]
    if launched().is_first:
        write_log(folder / LOG, kept)
    watch = Watch(model, job.recipe, job.name, folder / LOG, kept[-1]["seconds"] if kept else 0.0, progress)
    trainer.add_callback(watch)
    if job.swap_to:
        trainer.add_callback(LateMechanism(model, job.recipe.steps - round(job.recipe.steps * job.swap_fraction)))
    try:
        with static_shapes() if compiled else nullcontext():
            trainer.train(resume_from_checkpoint=str(whole[reached]) if whole else None)
    except UserError:
        raise
    except Exception as error:
        if is_full(error):  # what was cut off is of no use, and in the way of the next try
            for half in {*(folder / WORK).glob("checkpoint-*")} - {*whole_checkpoints(folder / WORK).values()}:
                shutil.rmtree(half, ignore_errors=True)
            raise
        if is_out_of_memory(error) or not whole or watch.stepped:
            raise
        raise UserError(
            f"output {str(folder)!r}: its checkpoint {whole[reached].name} cannot be read ({type(error).__name__}); "
            "start over with --fresh"
        ) from error
    finally:
        watch.close()
    return watch.seconds


def static_shapes() -> Any:
    """Let torch.compile make a graph for the short and one for the long sequences, not a slower one for any length."""
    import torch._dynamo  # takes seconds

    return torch._dynamo.config.patch(automatic_dynamic_shapes=False)


def bfloat16(where: torch.device) -> bool:
    """Tell whether to train in bfloat16: where the device multiplies it itself; elsewhere it is slower than float32."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    signs = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return where.type == "cpu" and any(bool(getattr(torch.cpu, sign, lambda: False)()) for sign in signs)
