from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemine.cli import main
from scalemine.config import Config, FilterConfig, InputError
from scalemine.executor import InlineExecutor, StopSignals, make_executor
from scalemine.filtering import Terms, check_filter, keyword_pattern, make_rule, run_filter
from scalemine.pipeline import Run, run_import
from scalemine.store import read_json

TEXTS = [
    "Stuck on the roof at 123 Elm St, Houston 77002!",
    "please HELP, water rising, 77005-1234",
    "rescue teams are on their way",
    "RT @someone: rescue needed 77002",
    "my phone number is 713-77002 and I owe 77002.50",
    "Cajun   Navy is here",
    "helpful advice for el año nuevo",
    "nothing to see",
]


def terms_find(texts: list[str], **terms: tuple[str, ...]) -> dict[str, list[list[str]]]:
    return Terms(**terms).find(pa.chunked_array([texts]))


WORDS = st.text(st.sampled_from("aAñb1_ -#.É🔥"), min_size=1, max_size=5).filter(lambda word: word.strip())


@hypothesis.settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("aAñb1_ -#.É🔥\n"), max_size=12), min_size=1), WORDS)
def test_keywords_are_whole_words_in_any_case(texts: list[str], keyword: str) -> None:
    """Against Python's own regular expressions, whose word characters know Unicode."""
    phrase = r"\s+".join(map(re.escape, keyword.split()))
    stripped = keyword.strip()
    # As written, a keyword with spaces around it is that without.
    keyword = stripped
    before = r"(?<!\w)" if re.match(r"\w", keyword[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", keyword[-1]) else ""
    slow = re.compile(before + phrase + after, re.IGNORECASE)
    found = terms_find(texts, keywords=(keyword,))["keywords"]
    assert found == [[keyword] if slow.search(text) else [] for text in texts]


@given(st.lists(st.text(st.sampled_from("0123456789 -,.a#"), max_size=14), min_size=1))
def test_codes_are_whole_numbers_of_five_digits(texts: list[str]) -> None:
    wanted = tuple(f"{digit}" * 5 for digit in range(10)) + tuple(f"{number:05}" for number in range(0, 99_999, 7))

    def slow(text: str) -> list[str]:
        found = []
        for start in range(len(text) - 4):
            code, before, after = text[start : start + 5], text[:start], text[start + 5 :]
            if not code.isdigit() or (before and (before[-1].isalnum() or before[-1] == "@")):
                continue
            if re.search(r"[0-9][.,\-]$", before):
                continue
            after = re.sub(r"^-[0-9]{4}(?![0-9a-z]|[.,\-][0-9])", "", after)
            if (after and after[0].isalnum()) or re.match(r"[.,\-][0-9]", after):
                continue
            if code in wanted and code not in found:
                found.append(code)
        return found

    assert terms_find(texts, codes=wanted)["codes"] == [slow(text) for text in texts]


def kept_of(**values: Any) -> list[int]:
    found_N, excluded_N, _ = make_rule(FilterConfig.model_validate(values)).apply(pa.chunked_array([TEXTS]))
    return [row for row in range(len(TEXTS)) if found_N[row] and not excluded_N[row]]


ZIPS = [77002, "77005"]
ASKS = ["rescue", "help"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"keywords": ASKS}, [1, 2, 3]),
        ({"codes": ZIPS}, [0, 1, 3]),
        ({"keywords": ASKS, "codes": ZIPS}, [0, 1, 2, 3]),
        ({"keywords": ASKS, "codes": ZIPS, "need": "all"}, [1, 3]),
        ({"keywords": ["cajun navy"]}, [5]),
        ({"patterns": [r"(?i)\b[0-9]+ [a-z]+ st\b"]}, [0]),
        ({"keywords": ASKS, "exclude_patterns": ["^RT @"]}, [1, 2]),
        # The negatives of the rescue requests: a code without a cry, a cry without a code, neither.
        ({"codes": ZIPS, "exclude_keywords": ASKS}, [0]),
        ({"keywords": ASKS, "exclude_codes": ZIPS}, [2]),
        ({"exclude_keywords": ASKS, "exclude_codes": ZIPS}, [4, 5, 6, 7]),
    ],
)
def test_what_is_kept(values: dict[str, Any], expected: list[int]) -> None:
    assert kept_of(**values) == expected


def test_a_pattern_that_explodes_elsewhere_takes_no_time() -> None:
    assert terms_find(["a" * 5_000 + "!"], patterns=("^(a+)+$",))["patterns"] == [[]]


def settings(tmp_path: Path, **values: Any) -> dict[str, Any]:
    path = tmp_path / "tweets.parquet"
    if not path.exists():
        texts = [f"{text} {row}" for row in range(400) for text in TEXTS]
        ids = [f"t{row}" for row in range(len(texts))]
        pq.write_table(pa.table({"id": ids, "text": texts, "lang": ["en"] * len(texts)}), path)
    corpus = {"uri": str(path), "rows_per_shard": 300, "keep": ["lang"]}
    return {"workdir": str(tmp_path / "work"), "corpus": corpus, "filter": values}


def run_of(values: dict[str, Any], **how: Any) -> Run:
    return Run(Config.model_validate(values), how.pop("executor", None) or InlineExecutor(), StopSignals(), **how)


FOUND = {"keywords": ["help", "absent"], "codes": ZIPS, "patterns": ["roof"]}


def test_the_file_holds_what_was_found_and_the_counts_are_its_own(tmp_path: Path) -> None:
    run = run_of(settings(tmp_path, **FOUND, exclude_patterns=["^RT"]))
    counts = run_filter(run)
    table = pq.read_table(run.workdir.filtered)
    assert table.column_names == ["id", "text", "lang", "matched_keywords", "matched_patterns", "matched_codes"]
    assert (counts["read"], counts["found"], counts["excluded"], counts["kept"]) == (3200, 1200, 400, 800)
    assert counts["keywords"] == {"help": 400, "absent": 0}
    assert counts["codes"] == {"77002": 400, "77005": 400}
    assert counts["patterns"] == {"roof": 400}
    first = table.to_pylist()[0]
    assert (first["matched_codes"], first["matched_patterns"], first["matched_keywords"]) == (["77002"], ["roof"], [])
    assert read_json(run.workdir.filter_counts) == counts


def test_ray_gives_the_same_bytes_as_inline(ray_session: None, tmp_path: Path) -> None:
    values = settings(tmp_path, **FOUND, sample=123)
    run_filter(run_of(values))
    other = values | {"workdir": str(tmp_path / "ray"), "compute": {"executor": "ray", "workers": 2}}
    config = Config.model_validate(other)
    with make_executor(config.compute, signals=StopSignals(), wants_gpu=False) as executor:
        run_filter(run_of(other, executor=executor))
    names = ("filtered.parquet", "filtered.json")
    assert [(tmp_path / "work" / name).read_bytes() for name in names] == [
        (tmp_path / "ray" / name).read_bytes() for name in names
    ]
    assert pq.read_metadata(tmp_path / "ray" / "filtered.parquet").num_rows == 123


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = settings(tmp_path, **FOUND)
    whole = run_of(values)
    run_filter(whole)
    before = whole.workdir.filtered.read_bytes()
    shards = sorted(whole.workdir.filter.glob("*.arrow"))
    kept, lost = shards[0], shards[1]
    made = kept.stat().st_mtime_ns
    (whole.workdir.filter / f"{lost.name}.json").unlink()
    whole.workdir.filtered.unlink()
    run_filter(run_of(values))
    assert (kept.stat().st_mtime_ns, whole.workdir.filtered.read_bytes()) == (made, before)


def test_a_second_call_does_nothing_and_damage_is_mended(tmp_path: Path) -> None:
    values = settings(tmp_path, **FOUND)
    run = run_of(values)
    counts = run_filter(run)
    written, before = run.workdir.filtered.stat().st_mtime_ns, run.workdir.filtered.read_bytes()
    assert run_filter(run_of(values)) == counts
    assert run.workdir.filtered.stat().st_mtime_ns == written
    run.workdir.filtered.write_bytes(b"gone")
    run_filter(run_of(values))
    assert run.workdir.filtered.read_bytes() == before


def test_another_filter_is_refused_by_name_unless_redone(tmp_path: Path) -> None:
    run_filter(run_of(settings(tmp_path, **FOUND)))
    other = settings(tmp_path, **FOUND | {"codes": ["77005"]})
    with pytest.raises(InputError, match=r"filter\.codes was"):
        check_filter(Config.model_validate(other))
    with pytest.raises(InputError, match=r"filter\.codes was"):
        run_filter(run_of(other))
    assert run_filter(run_of(other, redo=True))["codes"] == {"77005": 400}


def test_what_it_keeps_is_a_corpus(tmp_path: Path) -> None:
    run = run_of(settings(tmp_path, **FOUND))
    kept = run_filter(run)["kept"]
    corpus = {"uri": str(run.workdir.filtered), "keep": ["lang"]}
    corpus_of_kept = run_import(run_of({"workdir": str(tmp_path / "next"), "corpus": corpus}))
    assert corpus_of_kept.num_rows == kept


def test_entries_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "zips.txt").write_text("77002\n\n 02134 \n77002\n", encoding="utf-8")
    rule = make_rule(FilterConfig.model_validate({"codes": str(tmp_path / "zips.txt")}))
    assert rule.wanted.codes == ("77002", "02134")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "nothing to look for"),
        ({"need": "all"}, "nothing to look for"),
        ({"keywords": "absent.txt"}, r"filter\.keywords: absent\.txt: cannot be read"),
        ({"keywords": [" "]}, r"filter\.keywords: expected words"),
        ({"patterns": ["(?<!a)b"]}, r"filter\.patterns: .*no lookaround"),
        ({"keywords": ["a"], "exclude_patterns": ["("]}, r"filter\.exclude_patterns: .*missing"),
        ({"codes": ["7700"]}, r"filter\.codes: expected five digits"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_rule(FilterConfig.model_validate(values))


def test_codes_that_yaml_took_for_octal_are_refused() -> None:
    with pytest.raises(ValueError, match="in quotes where they begin with 0"):
        FilterConfig.model_validate({"codes": [0o2134]})


def test_columns_of_the_filter_are_not_kept_twice(tmp_path: Path) -> None:
    values = settings(tmp_path, **FOUND)
    values["corpus"]["keep"] = ["matched_codes"]
    with pytest.raises(InputError, match=r"corpus\.keep: matched_codes"):
        check_filter(Config.model_validate(values))


def test_the_command_prints_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, **FOUND)), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["scalemine", "filter", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert not ended.value.code
    assert "77005" in said
    assert "1,200 tweets in" in said


def test_more_keywords_than_one_pattern_of_re2_holds() -> None:
    words = tuple(f"word{number}" for number in range(300))
    with pytest.raises(pa.ArrowInvalid, match="too large"):
        pc.match_substring_regex(pa.array([""]), "|".join(map(keyword_pattern, words)))
    texts = ["a word299 and a WORD0", "sword7", "word15."]
    assert terms_find(texts, keywords=words)["keywords"] == [["word0", "word299"], [], ["word15"]]


def test_a_keyword_pattern_has_edges_only_beside_letters() -> None:
    assert keyword_pattern("#sos").startswith(r"(?i)\#sos")
    assert keyword_pattern("911!").endswith("!")
