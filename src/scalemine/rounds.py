"""The closed loop: train, let the model read the corpus, take what it wrongly tags as negatives, and train again.

In each round the negatives that the last model no longer tags have become easy; up to a share of them is replaced by
tweets of the corpus that it does tag and that the guard lets pass.

Source: Li et al. (2024), Conan-embedding, "dynamic hard negative mining", here with a tagger's spans for its scores.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalemine.config import InputError
from scalemine.mining.sampling import priorities, row_keys
from scalemine.mining.sets import negative_rows
from scalemine.pipeline import Run, mine_again, run_mine
from scalemine.store import Stage, Workdir, file_sha256, fingerprint, open_stage, read_json, write_json, write_whole
from scalemine.training.runs import run_training
from scalemine.training.tagging.tagger import load_tagger

logger = logging.getLogger(__name__)

TRAIN_SET, FACTS = "train.parquet", "round.json"


def run_rounds(run: Run, rounds: int) -> list[dict[str, Any]]:
    """Mine, train, and go through rounds of mining by the model and training again; what is finished is not redone.

    Args:
        run: The configuration, and where it runs; its training set is that of round 0.
        rounds: How many times the model mines.

    Returns:
        Per round, 0 included: what was replaced, and the result of training.

    Raises:
        InputError: The configuration has folds or no training set of its own.
    """
    config = run.config
    if config.train.train_uri or config.train.folds:
        raise InputError("train.train_uri and train.folds have no place in rounds, which train on one set; drop them")
    run_mine(run)
    workdir = Workdir(config.workdir.absolute())
    data = workdir.sets / f"train_{config.train.train_set}.parquet"
    history = [{"round": 0, **_train(run, data, 0)}]
    for number in range(1, rounds + 1):
        stage = _open_round(run, number, history[-1])
        if stage.manifest(stage.file(TRAIN_SET)) is None:
            with run.timed(f"round {number}"):
                _replace_easy(run, stage, data, history[-1]["model"])
        data = stage.file(TRAIN_SET)
        facts = read_json(stage.file(FACTS))
        if not facts["replaced"]:
            run.warn(f"round {number}: the model wrongly tags nothing that could be taken; stopped before it")
            break
        history.append({"round": number, **facts, **_train(run, data, number)})
    write_json(workdir.rounds / "rounds.json", history)
    return history


def _train(run: Run, data: Path, number: int) -> dict[str, Any]:
    config = run.config
    workdir = Workdir(config.workdir.absolute())
    name = f"{config.train.name or 'round'}-{number}"
    names = config.train.test_sets or sorted(p.stem.removeprefix("test_") for p in workdir.sets.glob("test_*.parquet"))
    train = config.train.model_copy(
        update={
            "name": name,
            "train_uri": str(data),
            "test_sets": None,
            "test_uris": {f"test_{kind}": str(workdir.sets / f"test_{kind}.parquet") for kind in names},
        }
    )
    [result] = run_training(
        config.model_copy(update={"train": train}), signals=run.signals, show=run.show, redo=run.redo
    )
    return {"model": str(workdir.runs / name / "model"), "result": result}


def _open_round(run: Run, number: int, before: dict[str, Any]) -> Stage:
    settings = {f"guard.{key}": value for key, value in run.config.guard.model_dump().items()}
    settings |= {"mining.pool": run.config.mining.pool, "mining.replace": run.config.mining.replace}
    workdir = run.workdir
    inputs = {
        "model": file_sha256(workdir.runs / before["result"]["name"] / "result.json"),
        # Of the settings and inputs that negatives.parquet was mined with: decisions, events, near-duplicates, seed.
        "mined": fingerprint(read_json(workdir.mined / "stage.json")),
    }
    folder = run.workdir.rounds / str(number)
    return open_stage(folder, version=1, settings=settings, inputs=inputs, redo=run.redo)


def _replace_easy(run: Run, stage: Stage, data: Path, model: str) -> None:
    """Write the next training set: the last one, with easy negatives replaced by what the model wrongly tags."""
    before = pq.read_table(data)
    rows = before.to_pylist()
    negatives = [i for i, row in enumerate(rows) if row["is_negative"]]
    tagged = load_tagger(model).tag([rows[i]["text"] for i in negatives])
    easy = [i for i, spans in zip(negatives, tagged, strict=True) if not spans]
    most = int(run.config.mining.replace * len(negatives))
    priorities_N = priorities(row_keys([rows[i]["id"] for i in easy]), run.config.seed, f"replace:{stage.folder.name}")
    to_go = [i for _, i in sorted(zip(priorities_N.tolist(), easy, strict=True))][:most]
    every = [pq.read_table(path, columns=["text"])["text"].to_pylist() for path in run.workdir.sets.glob("*.parquet")]
    without = {row["text"] for row in rows}.union(*every)
    mined = mine_again(run, model, per_class=max(1, len(to_go)), without=sorted(without))
    for message in mined.warnings:
        if "negatives found" not in message:  # as many as there are will do
            run.warn(message)
    fresh = _in_turn(mined.negatives.table, len(to_go))
    gone = set(to_go[: len(fresh)])
    kept = [row for i, row in enumerate(rows) if i not in gone]
    table = pa.Table.from_pylist(kept + negative_rows(fresh), schema=before.schema)
    with write_whole(stage.file(TRAIN_SET)) as path:
        pq.write_table(table, path, compression="zstd")
    facts = {
        "negatives": len(negatives),
        "easy": len(easy),
        "replaced": len(fresh),
        "to_review": mined.negatives.review.num_rows,
        "passed_over": mined.negatives.passed_over,
    }
    write_json(stage.file(FACTS), facts)
    stage.commit(stage.file(TRAIN_SET), rows=table.num_rows)
    logger.info("round: %d of %d negatives are easy; %d replaced", len(easy), len(negatives), len(fresh))


def _in_turn(table: pa.Table, count: int) -> list[dict[str, Any]]:
    """Return the first rows of each class in turn, until there are enough; each class's come surest first."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        by_class.setdefault(row["class_name"], []).append(row)
    turns = sorted((place, name) for name, rows in by_class.items() for place in range(len(rows)))
    return [by_class[name][place] for place, name in turns[:count]]
