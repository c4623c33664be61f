from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.mirror import MARK, is_uri, mirror_base, mirror_of, spelled

names = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="-_=+"), min_size=1)


@given(st.sampled_from(["s3", "gs", "abfs", "hdfs"]), names, st.lists(names), st.sampled_from(["", "/"]))
def test_what_is_mirrored_is_spelled_as_it_was_given(scheme: str, host: str, parts: list[str], end: str) -> None:
    uri = "/".join([f"{scheme}://{host}", *parts])
    folder = mirror_of(uri + end)
    assert spelled(f"{folder}: no good ('{folder}/a b')") == f"{uri}: no good ('{uri}/a b')"


def test_hosts_may_have_ports_and_accounts() -> None:
    for uri in ("hdfs://node:8020/work", "abfs://box@account.dfs.core.windows.net/work"):
        assert spelled(str(mirror_of(uri))) == uri
        assert mirror_of(uri).name == "work"


@pytest.mark.parametrize(
    "uri",
    ["s3://", "s3:///a", "ftp://host/a", "s3://b/a?region=x", "s3://b/../c", "s3://b/a//c", "s3://b/.a", "s3://b/a#1"],
)
def test_what_is_no_folder_in_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected a folder, or s3://BUCKET/PREFIX"):
        mirror_of(uri)


def test_no_password_becomes_the_name_of_a_folder() -> None:
    with pytest.raises(ValueError, match="expected no password") as caught:
        mirror_of("s3://me:planted@bucket/work")
    assert "planted" not in str(caught.value)


def test_where_mirrors_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCALEMINE_MIRROR", str(tmp_path))
    assert mirror_of("s3://b/c/d") == tmp_path / MARK / "s3" / "b" / "c" / "d"
    monkeypatch.delenv("SCALEMINE_MIRROR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert mirror_base() == tmp_path / "cache" / "scalemine" / MARK


def test_ordinary_paths_are_no_uris() -> None:
    assert is_uri("s3://b")
    assert not any(is_uri(text) for text in ("work/my", "/work", "C:/work", "s3:/b", "a b://c"))
    assert spelled("/somewhere/s3/b") == "/somewhere/s3/b"
