from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scalemine.report.ablation import groups_table, markdown, print_ablation, shares_table, write_ablation


@pytest.fixture
def found() -> dict[str, Any]:
    def point(share: float, f1: float) -> dict[str, Any]:
        runs = [{"run": "a", "fold": fold, "f1": f1 + fold / 100, "accuracy": None} for fold in range(2)]
        return {"share": share, "tagged": 10, "group": "majority", "f1": {"mean": f1, "sd": 0.01}, "runs": runs}

    test = {
        "over_shares": {"majority": 0.9, "minority": 0.8, "t": 2.902, "p": 0.027, "num_majority": 4, "num_minority": 4},
        "over_folds": {"effect": 0.1, "t": None, "p": None, "num_pairs": 2},
    }
    return {
        "model": "svm", "label": "a|b", "pattern": r"\d|x", "train": "tweets.parquet", "positives": 20, "tagged": 10,
        "folds": 2, "points": [point(0, 0.9), point(0.25, 0.85), point(0.75, 0.7)], "tests": {"f1": test},
    }  # fmt: skip


def test_tables_say_what_was_found(found: dict[str, Any]) -> None:
    rows = [[cell.text for cell in row] for row in shares_table(found).rows]
    assert rows == [["0", "10", "90.0 ± 1.0"], ["25", "10", "85.0 ± 1.0"], ["75", "10", "70.0 ± 1.0"]]
    [row] = groups_table(found).rows
    assert [cell.text for cell in row] == ["F1", "90.0", "80.0", "2.902", "0.027", "4 + 4", "–", "–", "2"]


def test_files_are_written_and_nothing_in_them_is_markup(found: dict[str, Any], tmp_path: Path) -> None:
    write_ablation(found, tmp_path)
    assert (tmp_path / "ablation.svg").read_text(encoding="utf-8").startswith("<svg")
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert text == markdown(found)
    assert r"a\|b" in text
    assert r"\\d\|x" in text


def test_the_terminal_shows_all(found: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=140)
    print_ablation(console, found)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10 of 20 tweets" in said
    assert "0.027" in said
    found["tests"] = {}
    print_ablation(console, found)
