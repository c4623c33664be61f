"""An ensemble as one folder: written by training, loaded anywhere.

    ensemble = load_ensemble("work/aggressiveness/runs/NAME/model")
    ensemble.classify(["water rising, need a boat"])

``members/NAME/`` are the folders of its members, whole, so the ensemble's folder can be copied. ``model.json`` says how
they decide together, their labels or span types, thresholds, metrics, and the hash of each member's files; it is
written last. It holds names, and no path; a member on sentence embeddings names an encoder, which
is looked for on this machine.

Shapes: M members, N texts, C labels.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalemine.config import ENSEMBLE, InputError
from scalemine.store import file_sha256, remove, write_json, write_whole_folder
from scalemine.training.ensemble.voting import average, vote, vote_spans
from scalemine.training.kept import OTHERS, check_files, load_model, model_folder, read_info
from scalemine.training.multilabel.head import in_order, order
from scalemine.training.multilabel.label_model import LabelModel
from scalemine.training.tagging.labels import Span, spans_of_tags, tags_of_spans
from scalemine.training.tagging.tagger import TaggedSpan, Tagger

# Rises when the meaning of what model.json holds changes.
FORMAT = 1
LABELS, SPANS = "labels", "spans"
MEMBERS = "members"
_NAME = re.compile(r"\w[\w.\-]*")


class LabelEnsemble(LabelModel):
    """Several models that give labels together; made by ``load_ensemble``.

    Args:
        info: What ``model.json`` holds.
        members: By name.
    """

    def __init__(self, info: dict[str, Any], members: Mapping[str, LabelModel]) -> None:
        self.info = info
        self.members = dict(members)
        self._nesting = order(self.labels, info["nested"])
        of_members = [[one.thresholds[label] for label in self.labels] for one in members.values()]
        self._thresholds_MC = np.array(of_members, np.float64)

    def normalise(self, text: str) -> str:
        """Return a text as it is: each member reads it in its own way."""
        return text

    def scores_of_normalised(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return shares of votes ``(N, C)``, or means of probabilities; see ``LabelModel``."""
        scores_MNC = np.stack([one.scores(texts) for one in self.members.values()])
        return in_order(combined(self.info["combine"], scores_MNC, self._thresholds_MC), self._nesting)


class SpanEnsemble:
    """Several taggers that vote over spans; made by ``load_ensemble``.

    Args:
        info: What ``model.json`` holds.
        members: By name.
    """

    def __init__(self, info: dict[str, Any], members: Mapping[str, Tagger]) -> None:
        self.info = info
        self.members = dict(members)

    @property
    def types(self) -> list[str]:
        """The span types that it knows."""
        return list(self.info["types"])

    def tag(self, texts: Sequence[str]) -> list[list[TaggedSpan]]:
        """Return the spans that more than half of the members give, exactly so, in order of their place.

        Their confidence is the mean over all members; that of who does not give the span is 0.

        Raises:
            ValueError: ``texts`` is one text rather than several.
        """
        by_member = [member.tag(texts) for member in self.members.values()]
        found = []
        for text, of_text in zip(texts, zip(*by_member, strict=True), strict=True):
            confidence = dict.fromkeys(((one.start, one.end, one.type) for spans in of_text for one in spans), 0.0)
            for one in (span for spans in of_text for span in spans):
                confidence[one.start, one.end, one.type] += one.confidence / len(of_text)
            chosen = sorted(vote_spans([[(one.start, one.end, one.type) for one in spans] for spans in of_text]))
            found.append(
                [
                    TaggedSpan(start, end, type_, text[start:end], confidence[start, end, type_])
                    for start, end, type_ in chosen
                ]
            )
        return found

    def tag_words(self, texts: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the BIO tags of texts that are words already, one at least."""
        return voted_tags([member.tag_words(texts) for member in self.members.values()])

    def count_cut(self, texts: Sequence[Sequence[str]]) -> int:
        """Return of how many texts some member does not read all words, at least."""
        return max(member.count_cut(texts) for member in self.members.values())


def combined(how: str, scores_MNC: NDArray[np.float32], thresholds_MC: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the scores ``(N, C)`` of members together."""
    return vote(scores_MNC, thresholds_MC) if how == "vote" else average(scores_MNC)


def voted_tags(by_member: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """Return the BIO tags of each text's spans that more than half of the members give.

    Args:
        by_member: The tags that each member gives each text.
    """
    tags = []
    for of_text in zip(*by_member, strict=True):
        spans: set[Span] = vote_spans([spans_of_tags(of_member) for of_member in of_text])
        tags.append(tags_of_spans(sorted(spans), len(of_text[0])))
    return tags


def write_ensemble(folder: Path, info: Mapping[str, Any], members: Mapping[str, Path]) -> None:
    """Write an ensemble's folder, with copies of its members' folders; ``model.json`` comes last.

    Args:
        folder: Where.
        info: What ``model.json`` is to hold; format, kind, members and hashes are put in here.
        members: Their folders, by name.
    """
    remove(folder / OTHERS)
    with write_whole_folder(folder / MEMBERS) as temporary:
        for name, source in members.items():
            shutil.copytree(source, temporary / name, ignore=shutil.ignore_patterns(".*"))
    hashes = {name: file_sha256(path) for name, path in _member_files(folder).items()}
    whole = {"format": FORMAT, "kind": ENSEMBLE} | dict(info) | {"members": list(members), "sha256": hashes}
    write_json(folder / OTHERS, whole)


def _member_files(folder: Path) -> dict[str, Path]:
    """Return the files of the members, by their path in the folder.

    Raises:
        InputError: One is a link, which may lead elsewhere.
    """
    found = {}
    for path in sorted((folder / MEMBERS).rglob("*")):
        if path.is_symlink():
            raise InputError(f"{path}: a link; an ensemble holds its members' files themselves")
        if path.is_file() and not path.name.startswith("."):
            found[path.relative_to(folder).as_posix()] = path
    return found


def load_ensemble(
    folder: str | Path, *, device: str = "auto", precision: str = "float32"
) -> LabelEnsemble | SpanEnsemble:
    """Load an ensemble from its folder, or from the folder of the run that wrote it.

    Args:
        folder: The folder.
        device: Of members that can be elsewhere than on the CPU; see ``kept.load_model``.
        precision: In which fine-tuned classifiers compute.

    Raises:
        InputError: There is none, it is damaged, or its members do not go together.
    """
    path = model_folder(folder)
    info = _read_info(path)
    files = _member_files(path)
    # No name of another place is looked at.
    if missing := sorted(info["sha256"].keys() - files.keys()):
        raise InputError(
            f"{path / MEMBERS}: {missing[0]!r} is missing; copy the whole folder, or train the ensemble again"
        )
    check_files(path, info["sha256"])
    if strange := sorted(files.keys() - info["sha256"].keys()):
        raise InputError(f"{files[strange[0]]}: no file of this ensemble; remove it")
    members: dict[str, Any] = {}
    for name in info["members"]:
        members[name] = load_model(path / MEMBERS / name, device=device, precision=precision)
        check_member(f"{path / MEMBERS / name}", members[name], info["of"], info[_NAMES[info["of"]]])
    return LabelEnsemble(info, members) if info["of"] == LABELS else SpanEnsemble(info, members)


# Where in model.json it is said what the members give.
_NAMES = {LABELS: "labels", SPANS: "types"}


def check_member(where: str, model: Any, of: str, names: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a model that does not give what its ensemble does.

    Args:
        where: What to call it.
        model: Any that was loaded.
        of: ``LABELS`` or ``SPANS``.
        names: The labels, in their order, or the span types.

    Raises:
        InputError: It gives something else.
    """
    if isinstance(model, LabelEnsemble | SpanEnsemble):
        raise InputError(f"{where}: an ensemble itself; name its members instead")
    gives = SPANS if isinstance(model, Tagger) else LABELS
    found = list(model.types if isinstance(model, Tagger) else model.labels)
    if gives != of or found != list(names):
        raise InputError(
            f"{where}: gives the {gives} {', '.join(found)}; expected the {of} {', '.join(names)}, as of all"
        )


def of_spans(folder: str | Path) -> bool:
    """Return whether an ensemble gives spans.

    Raises:
        InputError: There is none, or it is damaged.
    """
    return bool(_read_info(model_folder(folder))["of"] == SPANS)


def _read_info(folder: Path) -> dict[str, Any]:
    return read_info(folder, ENSEMBLE, FORMAT, _check_info)


def _check_info(info: Mapping[str, Any]) -> None:
    if info["of"] not in _NAMES or info["combine"] not in (("vote", "average") if info["of"] == LABELS else ("vote",)):
        raise ValueError(f"expected labels or spans that are combined; got {info['combine']!r} of {info['of']!r}")
    members, names = info["members"], info[_NAMES[info["of"]]]
    if not members or len(set(members)) < len(members) or not all(_NAME.fullmatch(name) for name in members):
        raise ValueError(f"members: expected names, each once; got {members}")
    if not isinstance(names, list) or not names or len(set(names)) < len(names):
        raise ValueError(f"{_NAMES[info['of']]}: expected names, each once; got {names}")
    if info["of"] == LABELS:
        if not all(isinstance(info["thresholds"][label], float | int) for label in names):
            raise ValueError(f"thresholds: expected numbers, got {info['thresholds']}")
        order(names, info["nested"])
