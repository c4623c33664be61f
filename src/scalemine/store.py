"""Every file name, and how files come to be: whole or not at all, and never from two configurations.

A stage owns a folder under the work directory. ``stage.json`` in it holds the settings and inputs that decide its
content; a run with others is refused by name. A shard of a stage is a file plus a manifest; the manifest is written
last, so it is the commit point, and what has none is made again. Of a work directory in a bucket the same holds there;
see ``bucket``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from scalemine import bucket
from scalemine.config import DiskFullError, InputError

Json = Any


def _file_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


# Of files that others may read: some libraries make theirs the owner's alone.
FILE_MODE = _file_mode()


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it is synced and takes the name ``path`` at once.

    Raises:
        DiskFullError: There is no room for it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    with disk_full_said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(FILE_MODE)
            bucket.upload(path, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_full_said(path: Path) -> Iterator[None]:
    """Say in one line that there is no room for a path.

    Raises:
        DiskFullError: That is so.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{path}: cannot be written, the disk or its quota is full ({error.strerror or error}); make room and "
            f"call again, what was finished is kept"
        ) from error


@contextlib.contextmanager
def write_whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on success it takes the name ``path``, in place of what had it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    before = path.with_name(f"{temporary.name}.before")
    temporary.mkdir()
    try:
        yield temporary
        had_one = path.exists()
        if had_one:
            bucket.remove(one for one in path.rglob("*") if one.is_file())
            path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            if had_one:
                before.rename(path)
            raise
        shutil.rmtree(before, ignore_errors=True)
        bucket.push(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    if path.is_dir():
        _discard(path)
        return
    if path.exists():
        bucket.remove([path])
    path.unlink(missing_ok=True)


def write_json(path: Path, value: Json) -> None:
    """Write a value as JSON, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Json:
    """Return the value in a JSON file.

    Raises:
        InputError: There is no JSON in it.
        FileNotFoundError: It is not there.
    """
    try:
        return json.loads(bucket.see(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged, no JSON ({str(error)[:80]}); put it back, or remove its folder and run again"
        ) from None


KindT = TypeVar("KindT")


def read_as(path: Path, kind: type[KindT]) -> KindT:
    """Return the value in a JSON file as a dataclass or typed dictionary; each value is checked.

    Raises:
        InputError: It is not of this kind.
        FileNotFoundError: It is not there.
    """
    values = read_json(path)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        at = ".".join(map(str, first["loc"]))[:80] or "all of it"
        raise InputError(
            f"{path}: damaged ({at}: {first['msg'][:80]}); put it back, or remove its folder and run again"
        ) from None


def is_plain_name(name: object) -> bool:
    """Return whether that is the name of a file or folder in another, and not a way out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; a file that has not been touched since is not read again."""
    known = path.stat()
    return _sha256(path.absolute(), known.st_size, known.st_mtime_ns, known.st_ino)


@lru_cache(maxsize=1_024)
def _sha256(path: Path, *_known: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Json) -> str:
    """Return a short hash of a JSON value that does not depend on the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A stage's folder, opened for one set of settings and inputs; see ``open_stage``."""

    folder: Path
    fingerprint: str

    def file(self, name: str) -> Path:
        """Return the path of a file of this stage."""
        return self.folder / name

    def is_ours(self) -> bool:
        """Return whether what the folder holds was made for these settings and inputs."""
        mark = self.file("stage.json")
        return mark.exists() and fingerprint(read_json(mark)) == self.fingerprint

    def commit(self, path: Path, **facts: Json) -> None:
        """Write the manifest of a finished file: its size and hash, and what the caller knows of it."""
        whole = {"bytes": path.stat().st_size, "sha256": file_sha256(path), "stage": self.fingerprint, **facts}
        write_json(self._manifest_path(path), whole)

    def manifest(self, path: Path) -> Json | None:
        """Return the manifest of a file of this stage, or None where the file is not finished, or not of this stage."""
        try:
            manifest = read_json(self._manifest_path(path))
            whole = manifest["bytes"] == bucket.see(path).stat().st_size and manifest["stage"] == self.fingerprint
        except (FileNotFoundError, InputError, KeyError, TypeError):
            return None
        return manifest if whole else None

    def _manifest_path(self, path: Path) -> Path:
        return self.folder / (path.name + ".json")


def open_stage(
    folder: Path, *, version: int, settings: Json, inputs: Json, redo: bool = False, make: bool = True
) -> Stage:
    """Open a stage's folder, making it if it is new.

    Args:
        folder: The folder of the stage.
        version: Rises when the meaning of the stage's files changes.
        settings: The configuration values that decide the content, by dotted key.
        inputs: Hashes of what the stage reads, by name.
        redo: Discard what other settings or inputs left there, instead of refusing.
        make: False: look whether the folder fits, and write nothing.

    Raises:
        InputError: The folder was made with other settings or inputs; the message names them.
    """
    # Through JSON and back, so that tuples and paths compare equal to what the file holds.
    now = json.loads(json.dumps({"version": version, "settings": settings, "inputs": inputs}, default=str))
    mark = folder / "stage.json"
    if mark.exists():
        before = _read_mark(mark)
        has_work = any(path != mark and not path.name.startswith(".") for path in folder.iterdir())
        if before != now and has_work and not redo:
            differences = "; ".join(_differences(before, now))
            raise InputError(
                f"{folder}: made with another configuration ({differences}); "
                f"use another workdir, or --redo to discard it and what follows from it"
            )
        if before != now and make:
            _discard(folder)
    if not make:
        return Stage(folder, fingerprint(now))
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent.glob(f".{folder.name}.*.tmp"))
    _sweep(folder.rglob(".*.tmp"))
    if not mark.exists():
        write_json(mark, now)
    return Stage(folder, fingerprint(now))


def _read_mark(mark: Path) -> Json:
    found = read_json(mark)
    if not (
        isinstance(found, dict)
        and found.keys() == {"version", "settings", "inputs"}
        and all(isinstance(found[part], dict) for part in ("settings", "inputs"))
    ):
        raise InputError(f"{mark}: damaged (expected version, settings and inputs); remove {mark.parent} and run again")
    return found


def _sweep(leftovers: Iterable[Path]) -> None:
    """Remove what a killed run left half written."""
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _discard(folder: Path) -> None:
    """Remove a folder at once: what is killed in the middle leaves no part that could be taken for the whole."""
    bucket.remove(path for path in folder.rglob("*") if path.is_file())
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _differences(before: Json, now: Json) -> Iterator[str]:
    if before["version"] != now["version"]:
        yield f"stage version was {before['version']}, is {now['version']}"
    for part in ("settings", "inputs"):
        for key in sorted(before[part].keys() | now[part].keys()):
            was, wanted = before[part].get(key), now[part].get(key)
            if was != wanted:
                yield f"{key} was {_short(was)}, is {_short(wanted)}"


def _short(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


# In a run's folder: how far it has come, and what came out.
STATE, RESULT = "checkpoint.json", "result.json"


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a run, or None where it is not finished."""
    path = folder / RESULT
    found: dict[str, Any] | None = read_json(path) if path.exists() else None
    return found


@dataclass(frozen=True)
class Share:
    """Which part of a corpus a job without Ray is at: every ``count``-th shard, from ``index`` on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share that is written as ``I/N``.

        Raises:
            InputError: It is not one.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise InputError(f"--share {text}: expected I/N with I from 0 to N - 1, such as 0/8")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Workdir:
    """The names of everything one experiment writes."""

    root: Path

    @property
    def corpus(self) -> Path:
        """Folder of the imported corpus."""
        return self.root / "corpus"

    @property
    def filter(self) -> Path:
        """Folder of what the filter keeps, one Arrow file per shard of the corpus."""
        return self.root / "filter"

    @property
    def filtered(self) -> Path:
        """The tweets that the filter keeps."""
        return self.root / "filtered.parquet"

    @property
    def filter_counts(self) -> Path:
        """How many tweets the filter read, kept, and found by each keyword, pattern and code."""
        return self.root / "filtered.json"

    @property
    def ablation(self) -> Path:
        """Folder of the ablation: altered training tweets, and what came out."""
        return self.root / "ablation"

    @property
    def anchors(self) -> Path:
        """Folder of the encoded positives and anchors."""
        return self.root / "anchors"

    @property
    def probe(self) -> Path:
        """Folder of the encoded sample of the corpus."""
        return self.root / "probe"

    @property
    def cascade(self) -> Path:
        """Folder of what a cascade keeps of the corpus, one Parquet file per shard."""
        return self.root / "cascade"

    @property
    def embeddings(self) -> Path:
        """Folder of the embeddings, one Arrow file per shard of the corpus."""
        return self.root / "embeddings"

    @property
    def index(self) -> Path:
        """Folder of the search index, one FAISS file per shard of the corpus."""
        return self.root / "index"

    @property
    def similarities(self) -> Path:
        """Folder of the similarities to the anchors, one Arrow file per shard of the corpus."""
        return self.root / "similarities"

    @property
    def quarantine(self) -> Path:
        """Rows that no worker could encode, with the traceback."""
        return self.root / "embeddings" / "quarantine.parquet"

    @property
    def mined(self) -> Path:
        """Folder that says with what the negatives were mined."""
        return self.root / "mined"

    def generator(self, model: str) -> Path:
        """Folder of a further encoder's anchors, probe, embeddings and similarities."""
        return self.root / "generators" / (re.sub(r"\W+", "-", model).strip("-") + "-" + fingerprint(model)[:6])

    @property
    def distributions(self) -> Path:
        """Per class, the distribution of the similarity."""
        return self.root / "distributions.json"

    @property
    def negatives(self) -> Path:
        """The mined negatives."""
        return self.root / "negatives.parquet"

    @property
    def review(self) -> Path:
        """The tweets that mining is unsure about, the most useful to decide on first."""
        return self.root / "review.parquet"

    @property
    def decisions(self) -> Path:
        """What a person decided on them, one line each."""
        return self.root / "decisions.jsonl"

    @property
    def sets(self) -> Path:
        """Folder of the training and test sets."""
        return self.root / "sets"

    @property
    def runs(self) -> Path:
        """Folder of the training runs, one folder each."""
        return self.root / "runs"

    @property
    def rounds(self) -> Path:
        """Folder of the rounds of mining by the model, one folder each."""
        return self.root / "rounds"

    @property
    def sweeps(self) -> Path:
        """Folder of the sweeps, one folder each."""
        return self.root / "sweeps"

    @property
    def jobs(self) -> Path:
        """Folder of the records of what was submitted."""
        return self.root / "jobs"

    @property
    def features(self) -> Path:
        """Folder of the cached vectors of words, by encoder."""
        return self.root / "features"

    @property
    def examples(self) -> Path:
        """Folder of labelled tweets: imported, tokenised and embedded."""
        return self.root / "examples"

    @property
    def results(self) -> Path:
        """The scores of all runs: one row per run, test set and metric."""
        return self.root / "results.parquet"

    @property
    def manifest(self) -> Path:
        """What ran, on what, how long, and what came out."""
        return self.root / "manifest.json"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.root / "report.html"

    def discard_leftovers(self) -> None:
        """Remove what a killed run left half written beside the stages."""
        _sweep(self.root.glob(".*.tmp"))
