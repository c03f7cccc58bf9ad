"""What a probe is to the house: what runs of a model, and what its folder says of itself."""

import importlib.util
import pkgutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ..errors import UserError
from ..rows import Fields, Row
from .options import Options, Shown, chosen

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..readers.reader import Reader
    from ..report.section import Section


SomeOptions = TypeVar("SomeOptions", bound=Options)


class Sample(Protocol):
    """One sample of a plan; its name is that of its row, or what the names of its rows begin with."""

    @property
    def context_length(self) -> int: ...


class Probe(Protocol):
    """What runs on a model: parameters, a plan of named samples, and a call that yields their rows.

    name: its folder in the run store. schema: of its rows. needs: what a reader has to give. wants: what it makes use of where a
    reader gives it. unit: what its samples are
    drawn in. sample_is: what one of them is called.
    all_rows: whether the logits of every token are made, for the cost that is said beforehand.
    """

    @property
    def name(self) -> str: ...
    @property
    def schema(self) -> type[Row]: ...
    @property
    def needs(self) -> frozenset[str]: ...

    wants: frozenset[str] = frozenset()
    unit: str = "samples"
    sample_is: str = "sample"
    all_rows: bool = False

    def plan(self) -> Sequence[Any]:
        """Return the samples in the order they run."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Return all that decides the rows."""
        ...

    def __call__(
        self,
        reader: "Reader",
        done: Collection[str],
        batch_size: int | None,
        claim: Callable[[], bool],
    ) -> Iterator[list[Fields]]:
        """Yield rows as they come, samples named in `done` left out.

        claim, asked once for each batch of the whole plan in turn, tells whether it is this process's.
        """
        ...

    def given(self, gives: frozenset[str]) -> "Probe | None":
        """Return what of the probe a reader can give that gives no more than this: itself if that is all, None for nothing."""
        return self if self.needs <= gives else None

    def longest(self) -> int:
        """Return the tokens of the longest sample, of all that there would be without a limit on their number."""
        return max(sample.context_length for sample in self.plan())

    def names(self, sample: Any) -> list[str]:
        """Return the names of a sample's rows."""
        return [sample.name]

    def rows_planned(self) -> list[str]:
        """Return the names of all rows, in the order of the plan. Raises UserError for no sample, and for two rows of one name."""
        names = [name for sample in self.plan() for name in self.names(sample)]
        if not names:
            raise UserError(f"probe {self.name}: its plan is empty; ask it for at least one sample")
        if len({*names}) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(
                f"probe {self.name}: two rows of its plan are named {twice!r}, and one would be lost; give each its own name"
            )
        return names

    def has(self, sample: Any, done: Collection[str]) -> bool:
        """Tell whether all rows of a sample are named in `done`."""
        return all(name in done for name in self.names(sample))

    def reads(self, sample: Any) -> list[int]:
        """Return the tokens of each sequence that a sample's rows take, at most."""
        return [sample.context_length]

    def shared(self, sample: Any) -> list[int]:
        """Return how many tokens of a sample's first sequences (reads) another sample's have read, about, where they are read forked."""
        return []

    def tokens(self, rows: Sequence[Fields]) -> int:
        """Return the tokens that stored rows stand for."""
        return sum(row["context_length"] for row in rows)

    def note(self, rows: Sequence[Fields]) -> str:
        """Return what is worth a note about all rows of a run, nothing where nothing is."""
        return ""

    def advice(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Return what a user should know of asking this of a model with such a tokenizer, nothing where that is nothing."""
        return ""

    def told(self, tokenizer: "PreTrainedTokenizerBase") -> Fields:
        """Return what a run's record tells besides, of what the tokenizer makes of the parameters."""
        return {}

    def check(self, model: "PreTrainedModel | None", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise UserError for what a model cannot be asked. model: None for one that is not in this process."""


@dataclass(frozen=True)
class Kind(Generic[SomeOptions]):
    """A probe's folder: what the command line, Python, the store and the page read of it.

    name: of the command and the folder of its runs, and with underscores of the Python function. options: what it can be
    asked; its docstring is the command's help. schema: of its rows. shown: what the command takes besides, of how it is shown.
    place: where it stands among the others. returns: what its Python function returns. in_run: whether `ssmax-eval run`, which asks
    all that says where a failure comes from, asks it too.

    The folder's probe.py gives `maker` what returns the probe that options ask for, beside those of the same command. Its
    numbers.py, if there is one, has of(rows): what the Python function returns of them. Each file in its folder
    `sections` has a SECTION, a part of the page and of the terminal.
    """

    name: str
    options: type[SomeOptions]
    schema: type[Row]
    package: str
    shown: type[Shown] = Shown
    place: int = 100
    returns: str = "the rows, columns as results/README.md names them"
    in_run: bool = True
    _makers: list[Callable[[Any, SomeOptions, Sequence[Probe]], Probe]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def function(self) -> str:
        """The name of its Python function."""
        return self.name.replace("-", "_")

    def make(self, models: Any, options: SomeOptions, beside: Sequence[Probe] = ()) -> Probe:
        """Return the probe that options ask for. Raises UserError."""
        if not self._makers:
            self._module("probe")  # late: torch takes seconds
        return self._makers[-1](models, options, beside)

    def maker(self, make: Callable[[Any, SomeOptions, Sequence[Probe]], Probe]) -> None:
        """Take what makes this probe of models, its options and the probes beside it."""
        self._makers.append(make)

    def asked(self, values: Mapping[str, Any]) -> SomeOptions:
        """Return this probe's options of values by name, those of other probes left out. Raises UserError."""
        return self.options(**chosen(self.options, values))

    def numbers(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """Return what the Python function returns of its rows: the rows, or what the folder's numbers.py makes of them."""
        found: pd.DataFrame = self._module("numbers").of(rows) if self._has("numbers") else rows
        return found

    def sections(self) -> "list[Section[Any]]":
        """Return the parts of the page that this probe brings."""
        if not self._has("sections"):
            return []
        files = [each.name for each in pkgutil.iter_modules(self._module("sections").__path__)]
        return [self._module(f"sections.{name}").SECTION for name in files]

    def _has(self, name: str) -> bool:
        return importlib.util.find_spec(f"{self.package}.{name}") is not None

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")
