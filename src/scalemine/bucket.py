"""Work directories in buckets: a local mirror of each, and when what goes to the bucket and comes from it.

``s3://bucket/prefix`` is worked on in the folder ``BASE/scalemine-mirror/s3/bucket/prefix``, so a path alone says, to
any process on any machine, for which object it stands, and whoever has only paths to do with needs to know of no
bucket. BASE is the variable SCALEMINE_MIRROR, or the user's cache.

The bucket is what counts. What is written goes there before it gets its name in the mirror, and a manifest goes last in
both; what is removed goes from there first, manifests before what they speak of. A file of the mirror has the time of
its object: where size or time differ, it is fetched again. The files of shards, which are large, are fetched when they
are opened; until then a file of their size, without a right to read it and with nothing on the disk, stands for each.
Names that begin with a dot stay in the mirror.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from scalemine.config import InputError, RunError
from scalemine.mirror import MARK, is_uri, mirror_of

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")

# How often a request is tried, on top of what the store's own client does, and the seconds before the second try; each
# further pause is twice as long.
TRIES, PAUSE = 4, 1.0
THREADS: Final = 16
# The store counts time in seconds: an object this young may yet change without being seen to.
YOUNG: Final = 5.0
_BLOCK_BYTES: Final = 8 * 2**20
# Folders with a file per shard, and how such files end.
_SHARD_FOLDERS: Final = frozenset({"shards", "embeddings", "similarities", "cascade", "index"})
_SHARD: Final = re.compile(r"\d+\.(parquet|arrow|faiss)")
_NO_READ: Final = 0o200


class BucketError(RunError):
    """The store did not do what was asked of it, though it was tried again."""


class _Place(NamedTuple):
    """Where in which store a path of a mirror lies."""

    scheme: str
    host: str
    key: str

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{unquote(self.host)}/{self.key}".rstrip("/")


class _Stamp(NamedTuple):
    """What a file of the mirror and its object have in common."""

    num_bytes: int
    mtime_ns: int


# What this process knows of objects: those whose files it need not ask for, and the roots it has a listing of.
_known: dict[str, _Stamp] = {}
_listed: set[Path] = set()


def is_mirrored(path: Path) -> bool:
    """Return whether a path stands for an object, or for a folder in a bucket."""
    return _place(path) is not None


def _place(path: Path) -> _Place | None:
    parts = path.parts
    # By its name, as the base of who made the path may be another.
    if MARK not in parts:
        return None
    inner = parts[len(parts) - parts[::-1].index(MARK) :]
    return _Place(inner[0], inner[1], "/".join(inner[2:])) if len(inner) > 1 else None


def _is_kept_local(key: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(key).parts)


def _is_shard(key: str) -> bool:
    path = PurePosixPath(key)
    return path.parent.name in _SHARD_FOLDERS and bool(_SHARD.fullmatch(path.name))


# The store


@functools.lru_cache
def _filesystem(scheme: str, host: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a bucket, and what stands before each key; credentials are the environment's."""
    # Small files go in one request; Google's client retries for a quarter of an hour before it says what is wrong.
    query = {"s3": "?allow_delayed_open=true", "gs": "?retry_limit_seconds=30", "gcs": "?retry_limit_seconds=30"}
    filesystem, prefix = pafs.FileSystem.from_uri(f"{scheme}://{unquote(host)}/{query.get(scheme, '')}")
    return filesystem, prefix.rstrip("/") + "/"


def _object(place: _Place) -> tuple[pafs.FileSystem, str]:
    filesystem, prefix = _filesystem(place.scheme, place.host)
    return filesystem, prefix + place.key


def _tried(what: str, place: _Place, action: Callable[[], ResultT]) -> ResultT:
    """Do something, some times if need be.

    Raises:
        BucketError: It failed each time.
    """
    for attempt in range(TRIES):
        try:
            return action()
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise  # this machine's disk is full: trying again makes no room
            said = " ".join(str(error).split())[:300]
            if attempt + 1 < TRIES:
                logger.warning("%s: %s failed and is tried again (%s)", place.uri, what, said)
                time.sleep(PAUSE * 2**attempt)
    raise BucketError(
        f"{place.uri}: {what} failed {TRIES} times ({said}); what was finished before is kept: call again to go on"
    )


def _info(place: _Place) -> _Stamp | None:
    filesystem, key = _object(place)
    info = filesystem.get_file_info(key)
    return _stamp(info) if info.type == pafs.FileType.File else None


def _stamp(info: pafs.FileInfo) -> _Stamp:
    return _Stamp(info.size, info.mtime_ns or 0)


def _put(place: _Place, source: Path) -> _Stamp:
    filesystem, key = _object(place)
    num_bytes = source.stat().st_size
    # Elsewhere an object is there when it is closed, and not before.
    target = f"{key}.{os.getpid()}.tmp" if place.scheme == "hdfs" else key
    with source.open("rb") as file, filesystem.open_output_stream(target) as sink:
        while block := file.read(_BLOCK_BYTES):
            sink.write(block)
    if target != key:
        if filesystem.get_file_info(key).type == pafs.FileType.File:
            filesystem.delete_file(key)
        filesystem.move(target, key)
    found = _info(place)
    if found is None or found.num_bytes != num_bytes:
        raise OSError(f"{num_bytes} bytes were written, and there are {found and found.num_bytes}")
    return found


def _list(root: _Place) -> dict[str, _Stamp]:
    """Return the objects below a folder, by their keys."""
    filesystem, folder = _object(root)
    found = filesystem.get_file_info(pafs.FileSelector(folder.rstrip("/"), recursive=True, allow_not_found=True))
    if not found and filesystem.get_file_info(folder.split("/")[0]).type == pafs.FileType.NotFound:
        raise OSError(f"no such bucket: {unquote(root.host)}")
    start = len(folder) - len(root.key)
    return {info.path[start:]: _stamp(info) for info in found if info.type == pafs.FileType.File}


# What single files do


def upload(path: Path, source: Path) -> None:
    """Put what is about to become a file of a mirror into the bucket; elsewhere, do nothing.

    Raises:
        BucketError: That failed.
    """
    place = _place(path)
    if place is None or _is_kept_local(place.key):
        return
    stamp = _tried("upload", place, lambda: _put(place, source))
    os.utime(source, ns=(stamp.mtime_ns, stamp.mtime_ns))
    _known[place.uri] = stamp


def remove(paths: Iterable[Path]) -> None:
    """Remove the objects of files that are about to be removed; manifests go before what they speak of.

    Raises:
        BucketError: That failed.
    """
    places = [place for path in paths if (place := _place(path)) is not None and not _is_kept_local(place.key)]
    for part in _in_order_of_removal(places):
        _side_by_side(_remove_one, part)


def _in_order_of_removal(places: list[_Place]) -> Iterator[list[_Place]]:
    def rank(place: _Place) -> int:
        name = PurePosixPath(place.key).name
        return 2 if name == "stage.json" else 0 if name.endswith(".json") else 1

    for wanted in range(3):
        yield [place for place in places if rank(place) == wanted]


def _remove_one(place: _Place) -> None:
    def delete() -> None:
        filesystem, key = _object(place)
        if _info(place) is not None:
            filesystem.delete_file(key)

    _tried("removal", place, delete)
    _known.pop(place.uri, None)


def see(path: Path) -> Path:
    """Let a file of a mirror be as its object is, for who asks whether it is there, how large, or reads a small one.

    Raises:
        BucketError: It could not be fetched.
    """
    place = _place(path)
    if place is None or _is_kept_local(place.key):
        return path
    here, known = _here(path), _known.get(place.uri)
    if (known is not None and here == known) or (known is None and here is None and _is_listed(path)):
        return path
    found = _tried("look", place, lambda: _info(place))
    if found is None:
        path.unlink(missing_ok=True)
    elif here != found:
        _fetch_or_stand_in(path, place, found)
    else:
        _known[place.uri] = found
    return path


def local(path: Path) -> Path:
    """Let a file of a mirror be there whole, to be opened; return its path.

    Raises:
        BucketError: It could not be fetched.
    """
    place = _place(see(path))
    if place is not None and (here := _here(path)) is not None and _stands_in(path):
        _fetch(path, place, here)
    return path


def find(path: Path) -> bool:
    """Return whether a file of a mirror is there, or in the bucket.

    Raises:
        InputError: The bucket cannot be reached.
    """
    place = _place(path)
    if place is not None and not _is_listed(path):
        try:
            found = _info(place)
        except (OSError, pa.ArrowException) as error:
            raise _unreachable(place, error) from None
        if found is not None and _here(path) != found:
            _fetch_or_stand_in(path, place, found)
    return path.is_file()


def unreachable(path: Path, error: Exception) -> InputError:
    """Return what to say where a bucket cannot be reached."""
    place = _place(path)
    assert place is not None
    return _unreachable(place, error)


def _unreachable(place: _Place, error: Exception) -> InputError:
    said = " ".join(str(error).split())[:300]
    return InputError(
        f"{place.uri}: cannot be reached: {said}; check the bucket's name, your credentials (they are taken from "
        f"the environment, such as AWS_ACCESS_KEY_ID) and the network"
    )


def _is_listed(path: Path) -> bool:
    return any(root in path.parents for root in _listed)


def _here(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _Stamp(found.st_size, found.st_mtime_ns)


def _stands_in(path: Path) -> bool:
    return not path.stat().st_mode & 0o400


def _fetch_or_stand_in(path: Path, place: _Place, stamp: _Stamp) -> None:
    if not _is_shard(place.key):
        _fetch(path, place, stamp)
        return
    temporary = _beside(path)
    with open(os.open(temporary, os.O_CREAT | os.O_WRONLY, _NO_READ), "wb") as file:  # noqa: PTH123  with its mode
        file.truncate(stamp.num_bytes)
    _take_name(temporary, path, place, stamp)


def _fetch(path: Path, place: _Place, stamp: _Stamp) -> None:
    temporary = _beside(path)

    def get() -> None:
        filesystem, key = _object(place)
        with filesystem.open_input_stream(key) as source, temporary.open("wb") as file:
            while block := source.read(_BLOCK_BYTES):
                file.write(block)
        if temporary.stat().st_size != stamp.num_bytes:
            raise OSError(f"{temporary.stat().st_size} of {stamp.num_bytes} bytes came")

    try:
        _tried("download", place, get)
        if not _is_shard(place.key) and stamp.mtime_ns > (time.time() - YOUNG) * 1e9:
            stamp = stamp._replace(mtime_ns=stamp.mtime_ns - 1)  # to be fetched again by the next command
        _take_name(temporary, path, place, stamp)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")


def _take_name(temporary: Path, path: Path, place: _Place, stamp: _Stamp) -> None:
    os.utime(temporary, ns=(stamp.mtime_ns, stamp.mtime_ns))
    temporary.replace(path)
    _known[place.uri] = stamp


def _side_by_side(action: Callable[..., object], *items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="bucket") as threads:
        for _ in threads.map(action, *items):
            pass


def file_of(uri: str) -> Path:
    """Return the path of a user's file; one in a bucket is fetched, if it is there.

    Raises:
        InputError: The bucket cannot be reached.
    """
    try:
        path = mirror_of(uri) if is_uri(uri) else Path(uri)
    except ValueError as error:
        raise InputError(str(error)) from None
    return local(path) if find(path) else path


# What whole folders do


def sync(root: Path, *, alone: bool) -> None:
    """Let a mirror be as its bucket is, but for the shards, which are fetched when they are opened.

    Args:
        root: The work directory; an ordinary one is left as it is.
        alone: Nobody writes into this mirror: what has no object is removed. Otherwise what is newer here stays.

    Raises:
        InputError: The bucket cannot be reached.
    """
    place = _place(root)
    if place is None:
        return
    try:
        objects = {key: stamp for key, stamp in _list(place).items() if not _is_kept_local(key)}
    except (OSError, pa.ArrowException) as error:
        raise _unreachable(place, error) from None
    base = _make_root(root, place)
    if alone:
        for path in _files(root):
            if path.relative_to(base).as_posix() not in objects:
                path.unlink(missing_ok=True)
    wanted: list[tuple[Path, _Place, _Stamp]] = []
    for key, stamp in objects.items():
        path, one, here = base / key, place._replace(key=key), _here(base / key)
        if here == stamp:
            _known[one.uri] = stamp
        elif alone or here is None or here.mtime_ns < stamp.mtime_ns:
            wanted.append((path, one, stamp))
    _side_by_side(lambda one: _fetch_or_stand_in(*one), wanted)
    _listed.add(root)


def _make_root(root: Path, place: _Place) -> Path:
    """Make the folder of a mirror, the user's alone, and return the folder that its keys are counted from."""
    base = root
    for _ in PurePosixPath(place.key).parts:
        base = base.parent
    try:
        base.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{place.uri}: its mirror {root} cannot be made ({error.strerror}); let SCALEMINE_MIRROR name a folder "
            f"that you may write, the same on all machines"
        ) from None
    return base


def _files(root: Path) -> Iterator[Path]:
    """Yield the files of a mirror that have objects, or should have."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_kept_local(name))
        yield from (Path(folder, name) for name in sorted(names) if not _is_kept_local(name))


def attach(root: Path) -> None:
    """Let the mirror on this machine have what a process needs that others sent to work; done once per process."""
    if is_mirrored(root) and root not in _listed:
        sync(root, alone=False)


def refresh() -> None:
    """Learn what processes on other machines have written."""
    for root in list(_listed):
        sync(root, alone=False)


def push(folder: Path) -> None:
    """Upload what was written into a folder of a mirror by others than us; data first, then what speaks of it.

    Raises:
        BucketError: That failed.
    """
    place = _place(folder)
    if place is None:
        return
    objects = _tried("listing", place, lambda: _list(place))
    todo = []
    for path in _files(folder):
        one = _place(path)
        assert one is not None
        if _stands_in(path):  # it holds nothing, though root may read it
            continue
        if objects.get(one.key) != _here(path) and not (_known.get(one.uri) == _here(path) and one.key in objects):
            todo.append(path)
    for is_json in (False, True):
        part = [path for path in todo if (path.suffix == ".json") == is_json]
        _side_by_side(lambda path: upload(path, path), part)


# Notes: objects that are no files of the mirror


def write_note(path: Path, value: dict[str, Any]) -> None:
    """Write a small JSON object.

    Raises:
        OSError: That failed.
    """
    place = _place(path)
    assert place is not None
    filesystem, key = _object(place)
    with filesystem.open_output_stream(key) as sink:
        sink.write(json.dumps(value).encode())


def read_note(path: Path) -> tuple[dict[str, Any] | None, float]:
    """Return what ``write_note`` wrote, None where nothing is there, and how old it is by the store's own clock."""
    place = _place(path)
    assert place is not None
    filesystem, key = _object(place)
    try:
        with filesystem.open_input_stream(key) as source:
            value = json.loads(source.read())
    except FileNotFoundError:
        return None, 0.0
    except ValueError:
        value = {}
    written = _info(place)
    if written is None:
        return None, 0.0
    clock = place._replace(key=f"{place.key}.{os.getpid()}.{time.monotonic_ns()}.now")
    now_filesystem, now_key = _object(clock)
    with now_filesystem.open_output_stream(now_key) as sink:
        sink.write(b"{}")
    now = _info(clock)
    now_filesystem.delete_file(now_key)
    return value if isinstance(value, dict) else {}, ((now or written).mtime_ns - written.mtime_ns) / 1e9


def drop_note(path: Path) -> None:
    """Remove a note that is there."""
    place = _place(path)
    assert place is not None
    filesystem, key = _object(place)
    filesystem.delete_file(key)


def notes(folder: Path, pattern: str) -> list[Path]:
    """Return the paths of the notes right in a folder whose names match."""
    place = _place(folder)
    assert place is not None
    names = (PurePosixPath(key) for key in _list(place))
    return sorted(folder / path.name for path in names if str(path.parent) == place.key and path.match(pattern))
