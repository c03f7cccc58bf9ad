"""RULER's tasks: their templates and numbers, which are the benchmark's definition.

Of NVIDIA/RULER (scripts/synthetic.yaml, scripts/data/synthetic/constants.py, Apache-2.0) as lm-eval 0.4.13 has them
(lm_eval/tasks/ruler), spelling included; docs/ruler.md tells where the two part, and what here is otherwise.
"""

from dataclasses import dataclass

from ...errors import UserError, nearest

NIAH = (
    "Some special magic {kinds} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kinds} afterwards.\n{context}\n"
    "What are all the special magic {kinds} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = "The special magic {kinds} for {query} mentioned in the provided text are"
NIAH_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
NIAH_ONE_PREFIX = "The special magic {kind} for {query} mentioned in the provided text is"
NEEDLE = "One of the special magic {kinds} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = tuple(round(100 * i / 39) for i in range(40))  # percent, where needles stand in prose: each at one of its own

VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
VT_PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assgined the "
    "value {value}, they are:"
)
HOPS = 4
EXAMPLE_TOKENS = 500  # of the example that stands in front of a prompt of vt, at most

CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
CWE_PREFIX = "Answer: The top 10 words that appear most often in the list are:"
COMMON = 10
SHORT = 4096  # tokens below which lists of cwe repeat their words less

FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
FWE_PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are:"
DOTS = "..."  # the most frequent word of fwe, which is noise
ALPHA = 2.0  # of the zeta distribution of its words


@dataclass(frozen=True)
class Task:
    """One task: its name in lm-eval, how many tokens an answer may have, and of needles how many of what.

    haystack: noise, text, needles, or list, which is no haystack. keys, values: word, number or uuid; needles: keys that the
    haystack holds; per_key: values of each; asked: keys that are asked for. spelled: the prompt fixes how its answer is
    written, by its last words or an example, so that one forward over it can show that greedy decoding writes it.
    """

    name: str
    to_write: int = 128
    haystack: str = "text"
    keys: str = "word"
    values: str = "number"
    needles: int = 1
    per_key: int = 1
    asked: int = 1
    spelled: bool = True

    @property
    def answers(self) -> int:
        """How many values a needle task asks for."""
        return self.per_key * self.asked


TASKS = {
    task.name: task
    for task in (
        Task("niah_single_1", haystack="noise"),
        Task("niah_single_2"),
        Task("niah_single_3", values="uuid"),
        Task("niah_multikey_1", needles=4),
        Task("niah_multikey_2", haystack="needles"),
        Task("niah_multikey_3", haystack="needles", keys="uuid", values="uuid"),
        Task("niah_multivalue", per_key=4, spelled=False),
        Task("niah_multiquery", needles=4, asked=4, spelled=False),
        Task("ruler_vt", to_write=30, haystack="noise"),
        Task("ruler_cwe", to_write=120, haystack="list", spelled=False),
        Task("ruler_fwe", to_write=50, haystack="list", spelled=False),
    )
}
SHORTHAND = {name.removeprefix("ruler_"): name for name in TASKS}  # as RULER itself calls them


def task_named(name: str) -> Task:
    """Return a task by lm-eval's name or RULER's own. Raises UserError."""
    found = TASKS.get(SHORTHAND.get(name, name)) or TASKS.get(name.removeprefix("ruler_"))
    if found is None:
        raise UserError(f"task {name!r}: allowed are {', '.join(TASKS)}{nearest(name, TASKS)}")
    return found


def niah_parts(task: Task, query: str) -> tuple[str, str, str]:
    """Return what stands in front of a needle task's context and behind it, and the words that the answer follows."""
    one = task.answers == 1
    slots = {"kind": task.values, "kinds": f"{task.values}s", "query": query}
    before, behind = (NIAH_ONE if one else NIAH).split("{context}")
    return before.format(**slots), behind.format(**slots), (NIAH_ONE_PREFIX if one else NIAH_PREFIX).format(**slots)


def needle_of(task: Task, key: str, value: str) -> str:
    """Write a needle."""
    return NEEDLE.format(kinds=f"{task.values}s", key=key, value=value)


def listed(names: list[str]) -> str:
    """Write several keys as a question names them."""
    return f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]


def numbered(words: list[str]) -> str:
    """Write words as a numbered list in one line."""
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
