"""Packs: the runs of a study in one compressed file, read as their folders are."""

import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from .disk import whole
from .errors import UserError
from .probes import PROBES, schema_of
from .rows import Row
from .store import Run

SUFFIX = ".zip"
FILES = ("run.json", "rows.jsonl")  # of a run
ENDS = [f"/{name}" for name in FILES]
PLACE = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # of a run: <probe>/<run_id>
LARGEST = 2**31  # bytes of one file of a run
# of another compression, NotImplementedError, is a RuntimeError
BROKEN = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class PackedRun(Run):
    """A run in a pack; `folder` is the pack's path with the run's place in it, `<pack>/<probe>/<run_id>`, perhaps below folders."""

    pack: Path = Path()
    inside: str = ""

    def content(self, name: str) -> bytes | None:
        """Return what a file of the run holds. Raises UserError for a pack that is broken."""
        try:
            with zipfile.ZipFile(self.pack) as archive:
                if (entry := self.entry(archive, name)) is None:
                    return None
                if entry.file_size > LARGEST:
                    raise ValueError(f"it holds {entry.file_size} bytes, more than is read")
                return archive.read(entry)
        except BROKEN as error:
            raise UserError(f"pack {str(self.pack)!r}: {self.inside}/{name} cannot be read ({error})") from error

    def entry(self, archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
        """Return where a file of the run is; None where there is none."""
        return archive.NameToInfo.get(f"{self.inside}/{name}")

    def parts(self) -> list[Path]:
        return []  # a pack holds finished runs alone

    @property
    def size(self) -> int:
        with opened(self.pack) as archive:
            entry = self.entry(archive, FILES[1])
        return entry.file_size if entry else 0

    def opened(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.content(name) or b"")

    @property
    def is_complete(self) -> bool:
        with opened(self.pack) as archive:
            return self.entry(archive, FILES[0]) is not None


def opened(pack: Path) -> zipfile.ZipFile:
    """Open a pack. Raises UserError for a file that is none."""
    try:
        return zipfile.ZipFile(pack)
    except BROKEN as error:
        raise UserError(f"pack {str(pack)!r}: it cannot be read ({error}); ssmax-eval pack makes one") from error


def is_place(name: str) -> bool:
    """Tell whether a run can stand there: as in a pack, or below folders in a zip file of results that was made by hand."""
    probe, run_id = f"/{name}".split("/")[-2:]
    return bool(PLACE.fullmatch(name) or (probe in PROBES and PLACE.fullmatch(f"{probe}/{run_id}")))


def packed_runs(pack: Path) -> list[Run]:
    """Return the runs of a pack, by probe and run_id; none of a zip file of others. Raises UserError for a file that is none."""
    with opened(pack) as archive:
        names = archive.namelist()
    records, places = (sorted(name[: -len(end)] for name in names if name.endswith(end)) for end in ENDS)
    if lost := {*filter(is_place, records)} - {*places}:
        raise UserError(f"pack {str(pack)!r}: {min(lost)} cannot be read (its {FILES[1]} is gone); make the pack again")
    found = [PackedRun(pack / place, Row, pack, place) for place in filter(is_place, places)]
    return [replace(run, schema=schema_of(run.probe)) for run in found]


def write_pack(runs: Sequence[Run], pack: Path) -> Path:
    """Write runs into one file, the same bytes for the same runs, and return it.

    Raises UserError for two of one name, and for a run that could not be read again: what a pack lacks, no command mends.
    """
    for run in runs:
        if not run.is_complete or run.content(FILES[1]) is None:
            raise UserError(
                f"run {run.folder}: it is not complete, or no run of ours; a pack holds finished runs alone"
            )
        if parts := run.parts():
            raise UserError(
                f"run {run.folder}: {parts[0].name} is of a launch that did not end; the same command again ends it"
            )
        run.verify()
    places = [f"{run.probe}/{run.run_id}" for run in runs]
    if wrong := next((place for place in places if not PLACE.fullmatch(place)), None):
        raise UserError(f"pack {str(pack)!r}: a run's place in it would be {wrong!r}; rename the run's folder")
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
