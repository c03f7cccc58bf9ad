"""How the processes of one launch share runs.

Each reads the whole plan. A counter in torch's store says whose batch is next, so the shares follow what batches cost.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Self

from .disk import held
from .errors import UserError
from .launch import Processes, launched
from .progress import said_after

COME = 300  # seconds in which all processes of a launch have to come
PATIENT = 5  # seconds after which it is said what is waited for
LEAVE = 5  # seconds that the first, which may hold the store, waits for the others after an error
PARTS = 10**12  # of the work, in which the store counts it
LOOK = 0.05  # seconds between two looks at the store
LOCK = ".process"  # of a process, in the output path: its end, however it comes, lets go of it


class Alone:
    """One process: what all agree on is what it says, and every batch is its own."""

    is_first, count = True, 1
    process: int | None = None

    def same(self, value: Any) -> Any:
        """Return the first process's value, JSON, in all of them."""
        return value

    def meet(self) -> None:
        """Let the first process go on when all have come here; the others do not wait."""

    def claims(self) -> Callable[[], bool]:
        """Return what tells, called for each batch of a plan in turn, whether it is this process's."""
        return lambda: True

    def did(self, part: float) -> None:
        """Tell that this process has done a part of all the work, 0 to 1."""

    def did_elsewhere(self) -> float:
        """Return the part of the work that the other processes have done."""
        return 0.0

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """Let the first process go through the block before the others."""
        yield


class Lost(UserError):
    """Why the processes of a launch end: one of them failed or is gone. Where it comes from an interruption, that is no user's."""


class Said(Lost):
    """The same, which another process says."""


class Together(Alone):
    """The processes of a launch, at work on the same runs; each makes the same calls in the same order.

    folder: the output path. There each holds a lock, so that the others see when it is gone.
    """

    def __init__(self, here: Processes, folder: Path) -> None:
        self.is_first, self.rank, self.count = here.is_first, here.rank, here.count
        self.process = here.rank
        self.others = [rank for rank in range(here.count) if rank != here.rank]
        self.folder = folder
        self.steps = self.own = 0

    def __enter__(self) -> Self:
        self.store = connect()
        with ExitStack() as stack:
            try:
                if self.is_first:
                    self.ask("set", "launch", secrets.token_hex(4))
                self.come(lambda: self.ask("check", ["launch"]))
                self.launch = self.ask("get", "launch").decode()
                stack.enter_context(held(self.folder, "its lock is held", self.lock(self.rank), wait=LEAVE))
                self.ask("add", "here", 1)
                self.come(lambda: self.ask("add", "here", 0) == self.count)
            except UserError as error:
                self.fail(error)
                raise
            self.stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self.stack:
            if error is None:
                self.leave()
            else:
                self.fail(error)

    def lock(self, rank: int) -> str:
        return f"{LOCK}-{self.launch}-{rank}"

    def ask(self, what: str, *arguments: Any) -> Any:
        """Ask the store, which without torchrun lives in the first process."""
        from torch.distributed import DistError

        try:
            return getattr(self.store, what)(*arguments)
        except DistError as error:
            raise UserError(self.gone(0)) from error

    def gone(self, rank: int) -> str:
        return f"process {rank} of {self.count} has ended before it was done; the same command goes on where it stopped"

    def come(self, until: Callable[[], bool]) -> None:
        """Wait for processes that are still starting."""
        deadline = time.monotonic() + COME
        note = f"waiting for all of {self.count} processes of this launch, {COME} s at most"
        with said_after(PATIENT, note):
            while not until():
                self.stop_if_one_failed()
                if time.monotonic() > deadline:
                    raise UserError(f"processes: fewer than {self.count} came in {COME} s; start all of them")
                time.sleep(LOOK)

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait for what others still do. Raises UserError if one of them failed or is gone."""
        look = 0
        while not until():
            self.stop_if_one_failed()
            if look % 10 == 9 and (rank := self.lost()) is not None:
                raise UserError(self.gone(rank))
            look += 1
            time.sleep(LOOK)

    def stop_if_one_failed(self) -> None:
        if self.ask("check", ["failed"]):
            reason = self.ask("get", "failed").decode()
            raise UserError(reason) if reason else KeyboardInterrupt

    def lost(self) -> int | None:
        """Return a process that is gone without a word."""
        return next((rank for rank in self.others if self.is_lost(rank)), None)

    def is_lost(self, rank: int) -> bool:
        """Tell whether nobody holds a process's lock, and it has not said that it ended, which comes first."""
        with suppress(UserError), held(self.folder, "", self.lock(rank)):
            return not self.has_ended(rank)
        return False

    def has_ended(self, rank: int) -> bool:
        return bool(self.ask("check", [f"ended/{rank}"]))

    def same(self, value: Any) -> Any:
        self.steps += 1
        key = f"same/{self.steps}"
        if self.is_first:
            self.ask("set", key, json.dumps(value))
            return value
        self.wait(lambda: self.ask("check", [key]))
        return json.loads(self.ask("get", key))

    def meet(self) -> None:
        self.steps += 1
        key = f"meet/{self.steps}"
        self.ask("add", key, 1)
        if self.is_first:
            self.wait(lambda: self.ask("add", key, 0) == self.count)

    def claims(self) -> Callable[[], bool]:
        self.steps += 1
        key = f"claims/{self.steps}"
        batch = ticket = -1

        def claim() -> bool:
            nonlocal batch, ticket
            batch += 1
            if ticket < batch:
                self.stop_if_one_failed()
                ticket = self.ask("add", key, 1) - 1
            return ticket == batch

        return claim

    def did(self, part: float) -> None:
        self.own += round(part * PARTS)
        self.ask("add", "did", round(part * PARTS))

    def did_elsewhere(self) -> float:
        return float(self.ask("add", "did", 0) - self.own) / PARTS

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        if not self.is_first:
            self.same(None)
        yield
        if self.is_first:
            self.same(None)

    def leave(self) -> None:
        """End when the first process has; it goes last, as the store may live in it."""
        if not self.is_first:
            self.wait(lambda: self.has_ended(0))
        self.end()

    def end(self, within: float = math.inf) -> None:
        """Say that this process has ended; the first one waits for the others to say so."""
        self.ask("set", f"ended/{self.rank}", "")
        deadline = time.monotonic() + within
        while self.is_first and not all(self.has_ended(rank) or self.is_lost(rank) for rank in self.others):
            if time.monotonic() > deadline:
                return
            time.sleep(LOOK)

    def fail(self, error: BaseException) -> None:
        """End by an error, which the others learn. Raises it anew where another process says it, or knows the reason."""
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        reason = str(error) if isinstance(error, UserError) else "" if stopped else self.gone(self.rank)
        try:
            if isinstance(error, SystemExit):  # by a launcher that stops all when one is gone
                if self.ask("check", ["failed"]):
                    reason = self.ask("get", "failed").decode()
                elif (rank := self.lost()) is not None:
                    reason = self.gone(rank)
            if not self.ask("check", ["failed"]):
                self.ask("set", "failed", reason)
            says = self.ask("add", f"said/{reason}", 1) == 1
            self.end(LEAVE)
        except UserError as lost:  # the first process is gone, and the store with it
            reason = str(lost) if stopped else reason
            says = reason != str(lost) or self.rank == 1
        if reason and (stopped or not says) and (stopped or isinstance(error, UserError)):
            raise (Lost if says else Said)(reason) from error


OPEN: list[Together] = []  # the one that this process is in


@contextmanager
def together(folder: Path) -> Iterator[Alone]:
    """Share runs below a folder with the other processes of the launch, if there are any, until all are done.

    Inside another such block it is that one. Raises UserError, also for what another process could not do.
    """
    here = launched()
    if here.is_first and not OPEN:
        for left in folder.glob(f"{LOCK}-*"):  # of launches that were killed
            with suppress(UserError), held(folder, "", left.name):
                pass
    if here.count == 1:
        yield Alone()
    elif OPEN:
        yield OPEN[-1]
    else:
        here.share_cores()
        with Together(here, folder) as group:
            OPEN.append(group)
            try:
                yield group
            finally:
                OPEN.remove(group)


CALLS = iter(range(10**9))  # one after the other, each with names of its own in the store


def connect() -> Any:
    """Return the store of the launch, with names for one call. Raises UserError where the processes do not find each other."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(f"ssmax-eval/{next(CALLS)}", connected())


@cache
def connected() -> Any:
    """Return torch's store of this launch: torchrun's own, else one in the first process."""
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    note = f"waiting for the launch's first process at MASTER_ADDR:MASTER_PORT {place}, {COME} s at most"
    try:
        with said_after(PATIENT, note):
            return next(rendezvous("env://", timeout=timedelta(seconds=COME)))[0]
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"processes: they do not find each other at MASTER_ADDR:MASTER_PORT {place} ({reason}); set both, alike for all"
        ) from error
