"""Which process of its launch this is, as torchrun, accelerate launch or srun tell it."""

import os
import re
from dataclasses import dataclass

from .errors import UserError

LAUNCHERS = "torchrun, accelerate launch and srun set it"
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # of mpirun, which accelerate would follow


@dataclass(frozen=True)
class Processes:
    """Which process of its launch this is: rank of count, and local_rank of local_count on this machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Tell whether this is the process that prints, reports, and writes what is written once."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """Return the device to take: of several processes that leave it open, each takes a GPU of its own."""
        if asked != "auto" or self.count == 1:
            return asked
        import torch

        if not torch.cuda.is_available():
            return asked
        own = self.local_rank % torch.cuda.device_count()  # a launcher may show each process one GPU alone
        torch.cuda.set_device(own)
        return f"cuda:{own}"

    def share_cores(self) -> None:
        """Let this process compute on its share of the cores, where its launcher has not said on how many."""
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            share = max(1, (os.cpu_count() or 1) // self.local_count)
            torch.set_num_threads(min(share, torch.get_num_threads()))


def launched() -> Processes:
    """Return which process this is, from what the launcher told it. Raises UserError for what no launcher would tell."""
    if "RANK" not in os.environ:
        for name, value in told_by_srun().items():  # for libraries too, which read torchrun's names
            os.environ.setdefault(name, value)
    count = number("WORLD_SIZE", 1, 1)
    if count > 1 and not os.environ.get("RANK"):
        raise UserError(f"WORLD_SIZE {count} without RANK: {LAUNCHERS} for each process; start with one, or unset it")
    rank = number("RANK", 0, 0, count - 1)
    found = Processes(rank, count, number("LOCAL_RANK", 0, 0), number("LOCAL_WORLD_SIZE", count, 1))
    if count == 1:
        for name in MPI:
            if number(name, 1, 0) > 1:
                raise UserError(
                    f"{name} {os.environ[name]}: mpirun's processes do not know of each other here; start them with torchrun, "
                    "accelerate launch or srun, or unset it"
                )
        # a process alone waits for no other, as libraries would that find it
        os.environ.pop("LOCAL_RANK", None)
    return found


def number(name: str, default: int, least: int, most: int | None = None) -> int:
    """Return a whole number of the environment."""
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least or (most is not None and int(text) > most):
        allowed = f"whole numbers from {least}" if most is None else f"{least} to {most}, below WORLD_SIZE {most + 1}"
        if most == least:
            allowed = f"{least} alone, as WORLD_SIZE is {most + 1}"
        raise UserError(f"{name} {text!r}: allowed is {allowed}; {LAUNCHERS}, or unset it")
    return int(text)


def told_by_srun() -> dict[str, str]:
    """Return what torchrun would tell this task of a step of several tasks; {} in any other process."""
    slurm = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    count = slurm.get("STEP_NUM_TASKS") or slurm.get("NTASKS", "1")
    # the script of sbatch has a job's number of tasks and is one process
    is_script = os.environ.get("ENVIRONMENT") == "BATCH" and "STEP_ID" not in slurm
    if "PROCID" not in slurm or count == "1" or is_script:
        return {}
    several = slurm.get("STEP_NUM_NODES") or slurm.get("NNODES", "1")
    nodes = slurm.get("STEP_NODELIST") or slurm.get("NODELIST", "")
    # a node list is a,b or name[01-04,07]; rank 0 is on its first; srun's own node can be one without tasks
    host = re.match(r"([^,\[]*)(?:\[([0-9]+))?", nodes)
    here = re.match("[0-9]+", slurm.get("STEP_TASKS_PER_NODE", ""))
    job = sum(int(slurm[name]) for name in ("JOB_ID", "STEP_ID") if slurm.get(name, "").isdecimal())
    told = {
        "RANK": slurm["PROCID"],
        "WORLD_SIZE": count,
        "LOCAL_RANK": slurm.get("LOCALID", "0"),
        "MASTER_ADDR": "127.0.0.1" if several == "1" or not host else "".join(filter(None, host.groups())),
        "MASTER_PORT": str(15000 + job % 10000),  # below those that systems give out
    }
    return told | ({"LOCAL_WORLD_SIZE": here[0]} if here else {})
