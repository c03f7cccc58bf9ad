"""What probes take when they are not told: said once, for the command line, Python and lm-eval.

What hangs on the models (task, lengths, window) is in by_model.py.
"""

LONGEST = 2**27  # tokens of a prompt
DEPTH_PERCENTS = (0, 25, 50, 75, 100)
TRIALS = 8
TEXT = "text"  # haystack and documents: generated prose
SCORED = "forced"
SEED = 0
PLAN = 2  # of prompts: a trial is one haystack
DOCUMENTS = 8
UNKNOWN = (512, 1024, 2048, 4096, 8192)  # context lengths where no model tells its training length
WINDOW = 256  # tokens of near context, at most
KEY_CONTEXT = 4096  # tokens of near context that tell a key token, at most (LongPPL)
