"""Keep the progress bars and advice of the libraries below out of our output."""

import os


def quiet_libraries() -> None:
    """Silence transformers, huggingface_hub, tokenizers and matplotlib; called before any of them is imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["MPLBACKEND"] = "agg"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the default of the libraries' bars; our own decides for itself
    # of torch's store, whose pages of C++ frames say what we say in a line: the process that holds it is gone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
