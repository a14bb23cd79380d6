"""Puts the entries of a checkpoint into a model, whole or as far as they fit.

Fine-tuning on other classes or with another number of queries keeps everything but the rows that belong to a class or
to a query: those rows are carried over one by one where the class names, or the ranks of the queries, agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights.classes import match_names, same_classes

QUERY_ENTRY = "query_embed.weight"  # row k belongs to the proposal of rank k
# Needed by training only: a checkpoint without them can be trained on, a model built without them takes the rest.
TRAINING_PARTS = ("aux_heads.", "positive_queries.", "downsample.", "label_embed.")
# A detector of boxes can start from one of masks, and the other way round.
MASK_PARTS = ("aux_heads.roi.mask_head.", "mask_branch.")
# Only Co-Deformable-DETR has it. There the proposals' class head tells objects from background by its first class.
OBJECTNESS_FAMILY = "query_positions."
WHOLE, NOTHING = "whole", "nothing"  # how much of an entry was carried over; anything else says it in words


@dataclass(frozen=True)
class ClassRows:
    """How the rows of an entry belong to classes: `per_class` rows for each in order, then `shared` rows for none."""

    per_class: int = 1
    shared: int = 0

    def count(self, num_classes: int) -> int:
        """Rows of an entry for this many classes."""
        return num_classes * self.per_class + self.shared


CLASS_ENTRIES = {
    r"class_heads\.\d+\.(weight|bias)": ClassRows(),
    r"label_embed\.weight": ClassRows(),
    r"aux_heads\.roi\.class_head\.(weight|bias)": ClassRows(shared=1),  # the background is last
    r"aux_heads\.roi\.box_head\.(weight|bias)": ClassRows(per_class=4),
    r"aux_heads\.atss\.class_head\.(weight|bias)": ClassRows(),
    r"aux_heads\.roi\.mask_head\.logits\.(weight|bias)": ClassRows(),
    r"mask_branch\.head\.logits\.\d+\.(weight|bias)": ClassRows(),  # of the last stage: one for all classes
    r"mask_branch\.iou_head\.iou\.(weight|bias)": ClassRows(),
}


@dataclass(frozen=True)
class LoadReport:
    """What became of every entry; all lists hold our names.

    Args:
        carried: taken over whole.
        partial: name -> what was taken over, e.g. `2 of 3 classes`; the other rows keep the model's values.
        reinitialised: left as the model had them, i.e. as `build_model` initialises them.
        ignored: in the checkpoint, but in no part of this model.
        kept_classes: classes whose rows were carried over by name; empty when the classes are the same.
        new_classes: classes of the model that the checkpoint does not know.
    """

    carried: list[str] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)
    reinitialised: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    kept_classes: list[str] = field(default_factory=list)
    new_classes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people, one sentence a line."""
        lines = [f"{len(self.carried)} entries carried over whole."]
        if self.kept_classes or self.new_classes:
            known = f"known to the checkpoint: {listed(self.kept_classes, 12) or 'none'}"
            lines.append(f"Classes {known}; new, their rows start afresh: {listed(self.new_classes, 12) or 'none'}.")
        for what in dict.fromkeys(self.partial.values()):
            names = [name for name, share in self.partial.items() if share == what]
            lines.append(f"Carried over in part ({what}): {listed(_layers(names), 12)}.")
        if self.reinitialised:
            lines.append(f"Re-initialised: {listed(_layers(self.reinitialised), 12)}.")
        if self.ignored:
            lines.append(f"Not used by this model: {listed(_layers(self.ignored), 12)}.")
        return lines


def load_into(
    model: nn.Module,
    checkpoint_state: Mapping[str, Tensor],
    *,
    strict: bool = True,
    class_names: Sequence[str] | None = None,
    checkpoint_class_names: Sequence[str] | None = None,
    source: str = "the checkpoint",
) -> LoadReport:
    """Copies a checkpoint's entries into a model.

    Args:
        model: as `build_model` returns it: entries that are not carried over keep the values it has, i.e. the published
            initialisation (class biases give every class a probability of 0.01).
        checkpoint_state: our names -> tensors.
        strict: every entry of the model must be there in its shape. False also takes another number of classes or
            queries, and lets one side have masks, or parts that only training needs, that the other has not. Either
            way, entries of parts that only training needs are ignored where the model was built without them.
        class_names: the model's classes in the order of their labels; used with `strict=False`.
        checkpoint_class_names: the checkpoint's. With both lists given, rows go by name; otherwise an entry whose
            number of classes differs is re-initialised whole.
        source: how an error calls the checkpoint, e.g. its path and preset.

    Raises:
        CheckpointError: entries are missing, unexpected or of other shapes: another architecture. Names the first ones.
    """
    target = model.state_dict()
    match = None
    if not strict and class_names is not None and checkpoint_class_names is not None:
        match = _match_classes(class_names, checkpoint_class_names)
    optional = TRAINING_PARTS if strict else TRAINING_PARTS + MASK_PARTS
    report = LoadReport(
        kept_classes=match.kept if match else [],
        new_classes=match.new if match else [],
        ignored=[name for name in checkpoint_state if name not in target and name.startswith(optional)],
    )
    objectness = _objectness_entries(target)
    merged: dict[str, Tensor] = {}
    missing: list[str] = []
    differing: list[str] = []
    for name, ours in target.items():
        theirs = checkpoint_state.get(name)
        if theirs is None:
            merged[name] = ours
            report.reinitialised.append(name)
            if strict or not _lacks_part_of(name, checkpoint_state, optional):
                missing.append(name)
            continue
        if strict:
            fitted = _fit_exactly(ours, theirs)
        elif name in objectness and theirs.shape != ours.shape:
            fitted = _fit_objectness(ours, theirs)
        else:
            fitted = _fit_partly(name, ours, theirs, None if name in objectness else match)
        if fitted is None:
            differing.append(f"{name} has {shape_text(theirs.shape)} instead of {shape_text(ours.shape)}")
            continue
        merged[name], share = fitted
        if share == WHOLE:
            report.carried.append(name)
        elif share == NOTHING:
            report.reinitialised.append(name)
        else:
            report.partial[name] = share
    unexpected = [name for name in checkpoint_state if name not in target and name not in report.ignored]
    check_entries(missing=missing, unexpected=unexpected, differing=differing, source=source)
    model.load_state_dict(merged)
    return report


def check_entries(*, missing: Sequence[str], unexpected: Sequence[str], differing: Sequence[str], source: str) -> None:
    """Refuses a checkpoint whose entries are not those of the model.

    Args:
        missing: entries of the model that the checkpoint lacks.
        unexpected: entries of the checkpoint that the model has no place for.
        differing: sentences on entries of another shape.
        source: how the message calls the checkpoint.

    Raises:
        CheckpointError: any of the lists has something in it; names the first of each.
    """
    faults = [
        *([f"{len(differing)} entries differ in shape: {listed(differing, 3)}"] if differing else []),
        *([f"{len(missing)} are missing: {listed(missing, 4)}"] if missing else []),
        *([f"{len(unexpected)} have no place in it: {listed(unexpected, 4)}"] if unexpected else []),
    ]
    if faults:
        raise CheckpointError(
            f"{source} is of another architecture than the model: {'. '.join(faults)}. "
            "Use the preset and the model settings that the checkpoint was trained with."
        )


def shape_text(shape: Sequence[int]) -> str:
    """A shape as `900x256`, of a single number as `scalar`."""
    return "x".join(str(size) for size in shape) or "scalar"


@dataclass(frozen=True)
class _ClassMatch:
    """Pairs of labels (in the model, in the checkpoint) of the classes that both know by name."""

    pairs: list[tuple[int, int]]
    kept: list[str]
    new: list[str]
    num_theirs: int

    @property
    def num_ours(self) -> int:
        return len(self.kept) + len(self.new)


def _match_classes(names: Sequence[str], checkpoint_names: Sequence[str]) -> _ClassMatch | None:
    """None when the classes are the same and nothing needs to be moved."""
    if same_classes(names, checkpoint_names):
        return None
    found = match_names(names, checkpoint_names)
    return _ClassMatch(
        pairs=[(label, other) for label, other in enumerate(found) if other is not None],
        kept=[name for name, other in zip(names, found, strict=True) if other is not None],
        new=[name for name, other in zip(names, found, strict=True) if other is None],
        num_theirs=len(checkpoint_names),
    )


def _fit_exactly(ours: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    return (theirs, WHOLE) if theirs.shape == ours.shape else None


def _fit_partly(name: str, ours: Tensor, theirs: Tensor, match: _ClassMatch | None) -> tuple[Tensor, str] | None:
    """The model's new value of an entry and how much of the checkpoint's is in it; None when it does not fit at all."""
    rows = next((rows for pattern, rows in CLASS_ENTRIES.items() if re.fullmatch(pattern, name)), None)
    same_rest = theirs.dim() == ours.dim() > 0 and theirs.shape[1:] == ours.shape[1:]
    if rows is not None and same_rest:
        if match is not None:
            # One box or mask for all classes has the rows of one class, however many there are.
            for_all = len(ours) == len(theirs) == rows.per_class and max(match.num_ours, match.num_theirs) > 1
            return _fit_exactly(ours, theirs) if for_all else _fit_classes(ours, theirs, rows, match)
        if len(theirs) != len(ours):
            return ours, NOTHING
    if name == QUERY_ENTRY and same_rest and len(theirs) != len(ours):
        count = min(len(theirs), len(ours))
        share = f"the first {count} queries of the checkpoint's {len(theirs)}; the model has {len(ours)}"
        return _copy_rows(ours, theirs, list(range(count)), list(range(count))), share
    return _fit_exactly(ours, theirs)


def _fit_classes(ours: Tensor, theirs: Tensor, rows: ClassRows, match: _ClassMatch) -> tuple[Tensor, str] | None:
    """Carries the rows of the classes that both know, and those that belong to no class."""
    if len(ours) != rows.count(match.num_ours) or len(theirs) != rows.count(match.num_theirs):
        return None
    if not match.pairs:
        return ours, NOTHING
    to_rows = [label * rows.per_class + i for label, _ in match.pairs for i in range(rows.per_class)]
    from_rows = [other * rows.per_class + i for _, other in match.pairs for i in range(rows.per_class)]
    to_rows += range(len(ours) - rows.shared, len(ours))
    from_rows += range(len(theirs) - rows.shared, len(theirs))
    share = WHOLE if not match.new else f"rows of {len(match.pairs)} of {match.num_ours} classes"
    return _copy_rows(ours, theirs, to_rows, from_rows), share


def _objectness_entries(target: Mapping[str, Tensor]) -> frozenset[str]:
    """Entries whose first row tells objects from background and belongs to no class."""
    if not any(name.startswith(OBJECTNESS_FAMILY) for name in target):
        return frozenset()
    last = max(int(found[1]) for name in target if (found := re.match(r"class_heads\.(\d+)\.", name)))
    return frozenset((f"class_heads.{last}.weight", f"class_heads.{last}.bias"))


def _fit_objectness(ours: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    if theirs.dim() != ours.dim() or theirs.shape[1:] != ours.shape[1:]:
        return None
    return _copy_rows(ours, theirs, [0], [0]), "the first row, which tells objects from background"


def _copy_rows(ours: Tensor, theirs: Tensor, to_rows: list[int], from_rows: list[int]) -> Tensor:
    value = ours.clone()
    value[to_rows] = theirs[from_rows].to(value)
    return value


def _lacks_part_of(name: str, state: Mapping[str, Tensor], parts: Sequence[str]) -> bool:
    """Whether `name` belongs to a part that may be absent and `state` has nothing of that part."""
    return any(name.startswith(part) and not any(other.startswith(part) for other in state) for part in parts)


def _layers(names: Sequence[str]) -> list[str]:
    """The layers that entries belong to, those of a list as one: `class_heads` for `class_heads.3.weight`."""
    return list(dict.fromkeys(re.sub(r"(\.\d+)?\.\w+$", "", name) for name in names))
