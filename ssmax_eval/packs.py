"""Packs: the runs of a study in one compressed file, read as their folders are."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .disk import whole
from .errors import UserError
from .probes import schema_of
from .store import Run

SUFFIX = ".zip"
FILES = ("run.json", "rows.jsonl")  # of a run
LARGEST = 2**31  # bytes of one file of a run


@dataclass(frozen=True)
class PackedRun(Run):
    """A run in a pack; `folder` is the pack's path with the run's place in it, `<pack>/<probe>/<run_id>`."""

    pack: Path = Path()
    inside: str = ""

    def content(self, name: str) -> bytes | None:
        """Return what a file of the run holds. Raises UserError for a pack that is broken."""
        try:
            with zipfile.ZipFile(self.pack) as archive:
                entry = archive.getinfo(f"{self.inside}/{name}")
                if entry.file_size > LARGEST:
                    raise UserError(
                        f"pack {str(self.pack)!r}: {entry.filename} holds {entry.file_size} bytes, more than is read"
                    )
                return archive.read(entry)
        except KeyError:
            return None
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
            raise UserError(f"pack {str(self.pack)!r}: it cannot be read ({error})") from error

    @property
    def size(self) -> int:
        return len(self.content(FILES[1]) or b"")

    def opened(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.content(name) or b"")

    @property
    def is_complete(self) -> bool:
        return self.content(FILES[0]) is not None


def packed_runs(pack: Path) -> list[Run]:
    """Return the runs of a pack, by probe and run_id. Raises UserError for a file that is none."""
    try:
        with zipfile.ZipFile(pack) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"pack {str(pack)!r}: it cannot be read ({error}); ssmax-eval pack makes one") from error
    places = sorted(name.removesuffix(f"/{FILES[1]}") for name in names if name.endswith(f"/{FILES[1]}"))
    return [PackedRun(pack / place, schema_of(place.split("/")[0]), pack, place) for place in places]


def write_pack(runs: Sequence[Run], pack: Path) -> Path:
    """Write runs into one file, the same bytes for the same runs, and return it. Raises UserError for two of one name."""
    for run in runs:
        if not run.is_complete or run.content(FILES[1]) is None:
            raise UserError(
                f"run {run.folder}: it is not complete, or no run of ours; a pack holds finished runs alone"
            )
    places = [f"{run.record()['probe']}/{run.run_id}" for run in runs]
    if len({*places}) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise UserError(f"pack {str(pack)!r}: run {twice} is given twice; give each once")
    if pack.suffix != SUFFIX:
        raise UserError(f"pack {str(pack)!r}: its name has to end in {SUFFIX}")
    pack.parent.mkdir(parents=True, exist_ok=True)
    with whole(pack) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_LZMA) as archive:
        for place, run in sorted(zip(places, runs, strict=True), key=lambda pair: pair[0]):
            for name in FILES:
                if (content := run.content(name)) is not None:
                    entry = zipfile.ZipInfo(f"{place}/{name}")  # with no time of its own
                    entry.compress_type, entry.external_attr = zipfile.ZIP_LZMA, 0o644 << 16
                    archive.writestr(entry, content)
    return pack
