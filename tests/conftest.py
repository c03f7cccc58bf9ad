"""Shared fixtures: offline always, and a small tokenizer and model of our own."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
