"""Loads the entries of a checkpoint into a model: all of them, or those that match.

Fine-tuning on other classes or with another number of queries loads every entry except rows that belong to a class or a
query. Those rows are loaded one by one, by class name or by query rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from codetr_cli.errors import CheckpointError, listed
from codetr_cli.weights.classes import match_names, same_classes
from codetr_cli.weights.values import check_types, check_weights

QUERY_ENTRY = "query_embed.weight"  # row k belongs to the proposal of rank k
# Used in training only: a checkpoint without them can be fine-tuned, and a model built without them ignores them.
TRAINING_PARTS = ("aux_heads.", "positive_queries.", "downsample.", "label_embed.")
# A box detector can start from a mask detector, and the reverse.
MASK_PARTS = ("aux_heads.roi.mask_head.", "mask_branch.")
# Only Co-Deformable-DETR has it. There, class 0 of the proposals' class head is objectness.
OBJECTNESS_FAMILY = "query_positions."
WHOLE, NOTHING = "whole", "nothing"  # how much of an entry was loaded; any other text describes the part


@dataclass(frozen=True)
class ClassRows:
    """Layout of an entry's rows: `per_class` rows for each class in order, then `shared` rows of no class."""

    per_class: int = 1
    shared: int = 0

    def count(self, num_classes: int) -> int:
        """The number of rows for a number of classes."""
        return num_classes * self.per_class + self.shared


CLASS_ENTRIES = {
    r"class_heads\.\d+\.(weight|bias)": ClassRows(),
    r"label_embed\.weight": ClassRows(),
    r"aux_heads\.roi\.class_head\.(weight|bias)": ClassRows(shared=1),  # background is last
    r"aux_heads\.roi\.box_head\.(weight|bias)": ClassRows(per_class=4),
    r"aux_heads\.atss\.class_head\.(weight|bias)": ClassRows(),
    r"aux_heads\.roi\.mask_head\.logits\.(weight|bias)": ClassRows(),
    r"mask_branch\.head\.logits\.\d+\.(weight|bias)": ClassRows(),  # of the last stage: class-agnostic
    r"mask_branch\.iou_head\.iou\.(weight|bias)": ClassRows(),
}


@dataclass(frozen=True)
class LoadReport:
    """What happened to every entry; all lists hold our names.

    Args:
        loaded: loaded completely.
        partial: name -> the part that was loaded, e.g. `rows of 2 of 3 classes`; other rows keep the model's values.
        reinitialized: not loaded: they keep the values of `build_model`.
        ignored: entries of the checkpoint that the model does not have.
        known_classes: classes whose rows were loaded by name; empty if model and checkpoint have the same classes.
        new_classes: classes of the model that the checkpoint does not have.
    """

    loaded: list[str] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)
    reinitialized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    known_classes: list[str] = field(default_factory=list)
    new_classes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report as text, one sentence per line."""
        lines = [f"{len(self.loaded)} entries loaded."]
        if self.known_classes or self.new_classes:
            known, new = (listed(names, 12) or "none" for names in (self.known_classes, self.new_classes))
            lines.append(f"Classes known to the checkpoint: {known}; new classes, initialized from scratch: {new}.")
        for part in dict.fromkeys(self.partial.values()):
            names = [name for name, share in self.partial.items() if share == part]
            lines.append(f"Loaded in part ({part}): {listed(_layers(names), 12)}.")
        if self.reinitialized:
            lines.append(f"Re-initialized: {listed(_layers(self.reinitialized), 12)}.")
        if self.ignored:
            lines.append(f"Not used by this model: {listed(_layers(self.ignored), 12)}.")
        return lines


def load_exact(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "the checkpoint",
    allow_nonfinite: bool = False,
) -> LoadReport:
    """Loads a checkpoint that has every entry of the model in its shape.

    Entries that only training needs are ignored if the model was built without them.

    Args:
        model: a network of `build_model`.
        state: our names -> tensors.
        source: the checkpoint's name in error messages, e.g. its path and preset.
        allow_nonfinite: accept NaN and infinite weights.

    Raises:
        CheckpointError: entries are missing, unexpected, of other shapes or types, or not finite; the model is
            unchanged.
    """
    target = model.state_dict()
    used = check_exact(state, target, source=source)
    check_weights(used, source=source, allow_nonfinite=allow_nonfinite, expected=target)
    model.load_state_dict(used)
    return LoadReport(loaded=list(target), ignored=[name for name in state if name not in used])


def check_exact(state: Mapping[str, Tensor], target: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The entries of a checkpoint that a model takes, which are all of the model's in its shapes.

    Args:
        state: our names -> tensors.
        target: the model's entries, perhaps on the meta device.
        source: the checkpoint's name in error messages.

    Raises:
        CheckpointError: entries are missing, unexpected or have other shapes.
    """
    used = {name: value for name, value in state.items() if name in target or not name.startswith(TRAINING_PARTS)}
    check_shapes(used, {name: value.shape for name, value in target.items()}, source=source)
    return used


def load_matching(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    class_names: Sequence[str] | None = None,
    checkpoint_class_names: Sequence[str] | None = None,
    source: str = "the checkpoint",
    allow_nonfinite: bool = False,
) -> LoadReport:
    """Loads the matching entries of a checkpoint with other classes or another number of queries.

    Model and checkpoint may also differ in masks and in the parts that only training needs. Entries that are not loaded
    keep the published initialization of the model (class biases give each class a probability of 0.01).

    Args:
        model: a network of `build_model`.
        state: our names -> tensors.
        class_names: the model's classes by label.
        checkpoint_class_names: the checkpoint's classes by label. With both lists, rows are matched by class name;
            otherwise entries with another number of classes are re-initialized.
        source: the checkpoint's name in error messages.
        allow_nonfinite: accept NaN and infinite weights.

    Raises:
        CheckpointError: another architecture, or entries of another type or not finite; the model is unchanged.
    """
    match = None
    if class_names is not None and checkpoint_class_names is not None:
        match = _match_classes(class_names, checkpoint_class_names)
    target = model.state_dict()
    common = {name: value for name, value in state.items() if name in target}
    check_types(common, source=source, expected=target)
    objectness = _objectness_entries(target)
    parts = TRAINING_PARTS + MASK_PARTS
    report = LoadReport(
        ignored=[name for name in state if name not in target and name.startswith(parts)],
        known_classes=match.known if match else [],
        new_classes=match.new if match else [],
    )
    merged: dict[str, Tensor] = {}
    missing: list[str] = []
    differing: list[str] = []
    for name, ours in target.items():
        theirs = state.get(name)
        if theirs is None:
            (report.reinitialized if _lacks_part_of(name, state, parts) else missing).append(name)
            continue
        if name in objectness:
            fitted = _fit_exactly(ours, theirs) or _fit_objectness(ours, theirs)
        else:
            fitted = _fit_partly(name, ours, theirs, match)
        if fitted is None:
            differing.append(_shape_difference(name, theirs.shape, ours.shape))
            continue
        merged[name], share = fitted
        if share == WHOLE:
            report.loaded.append(name)
        elif share == NOTHING:
            report.reinitialized.append(name)
        else:
            report.partial[name] = share
    unexpected = [name for name in state if name not in target and name not in report.ignored]
    _check_entries(missing=missing, unexpected=unexpected, differing=differing, source=source)
    check_weights(common, source=source, allow_nonfinite=allow_nonfinite, expected=target)
    model.load_state_dict(merged, strict=False)
    return report


def check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], *, source: str) -> None:
    """Compares a checkpoint's entries with the expected name -> shape; `source` is its name in error messages.

    Raises:
        CheckpointError: entries are missing, unexpected or have other shapes.
    """
    _check_entries(
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        differing=[
            _shape_difference(name, state[name].shape, shape)
            for name, shape in expected.items()
            if name in state and tuple(state[name].shape) != tuple(shape)
        ],
        source=source,
    )


def _check_entries(*, missing: Sequence[str], unexpected: Sequence[str], differing: Sequence[str], source: str) -> None:
    faults = [
        *([f"{len(differing)} entries have another shape: {listed(differing)}"] if differing else []),
        *([f"{len(missing)} are missing: {listed(missing)}"] if missing else []),
        *([f"{len(unexpected)} do not exist in the model: {listed(unexpected)}"] if unexpected else []),
    ]
    if faults:
        raise CheckpointError(
            f"{source} has another architecture than the model: {'. '.join(faults)}. "
            "Use the preset and the model settings that the checkpoint was trained with."
        )


def _shape_difference(name: str, theirs: Sequence[int], ours: Sequence[int]) -> str:
    found, expected = ("x".join(map(str, shape[:8])) or "scalar" for shape in (theirs, ours))
    return f"{name} has {found} instead of {expected}"


@dataclass(frozen=True)
class _ClassMatch:
    """Pairs of labels (in the model, in the checkpoint) of the classes that both have by name."""

    pairs: list[tuple[int, int]]
    known: list[str]
    new: list[str]
    num_ours: int
    num_theirs: int


def _match_classes(names: Sequence[str], checkpoint_names: Sequence[str]) -> _ClassMatch | None:
    """None if both have the same classes in the same order."""
    if same_classes(names, checkpoint_names):
        return None
    labels = match_names(names, checkpoint_names)
    return _ClassMatch(
        pairs=[(label, other) for label, other in enumerate(labels) if other is not None],
        known=[name for name, other in zip(names, labels, strict=True) if other is not None],
        new=[name for name, other in zip(names, labels, strict=True) if other is None],
        num_ours=len(names),
        num_theirs=len(checkpoint_names),
    )


def _fit_exactly(ours: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    return (theirs, WHOLE) if theirs.shape == ours.shape else None


def _fit_partly(name: str, ours: Tensor, theirs: Tensor, match: _ClassMatch | None) -> tuple[Tensor, str] | None:
    """The model's new value of an entry and how much of it is the checkpoint's; None if it does not fit at all."""
    rows = next((rows for pattern, rows in CLASS_ENTRIES.items() if re.fullmatch(pattern, name)), None)
    same_columns = theirs.dim() == ours.dim() > 0 and theirs.shape[1:] == ours.shape[1:]
    if rows is not None and same_columns:
        if match is not None:
            # Class-agnostic boxes and masks have the rows of one class, however many classes there are.
            agnostic = len(ours) == len(theirs) == rows.per_class and max(match.num_ours, match.num_theirs) > 1
            return _fit_exactly(ours, theirs) if agnostic else _fit_classes(ours, theirs, rows, match)
        if len(theirs) != len(ours):
            return ours, NOTHING
    if name == QUERY_ENTRY and same_columns and len(theirs) != len(ours):
        count = min(len(theirs), len(ours))
        share = f"the first {count} queries of the checkpoint's {len(theirs)}; the model has {len(ours)}"
        return _copy_rows(ours, theirs, list(range(count)), list(range(count))), share
    return _fit_exactly(ours, theirs)


def _fit_classes(ours: Tensor, theirs: Tensor, rows: ClassRows, match: _ClassMatch) -> tuple[Tensor, str] | None:
    """Copies the rows of the classes that both have, and the rows of no class."""
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
    """Entries whose first row is objectness and belongs to no class."""
    if not any(name.startswith(OBJECTNESS_FAMILY) for name in target):
        return frozenset()
    last = max(int(match[1]) for name in target if (match := re.match(r"class_heads\.(\d+)\.", name)))
    return frozenset((f"class_heads.{last}.weight", f"class_heads.{last}.bias"))


def _fit_objectness(ours: Tensor, theirs: Tensor) -> tuple[Tensor, str] | None:
    if theirs.dim() != ours.dim() or theirs.shape[1:] != ours.shape[1:]:
        return None
    return _copy_rows(ours, theirs, [0], [0]), "the first row, which is objectness"


def _copy_rows(ours: Tensor, theirs: Tensor, to_rows: list[int], from_rows: list[int]) -> Tensor:
    value = ours.clone()
    value[to_rows] = theirs[from_rows].to(value)
    return value


def _lacks_part_of(name: str, state: Mapping[str, Tensor], parts: Sequence[str]) -> bool:
    """Whether `name` belongs to an optional part of which `state` has no entry."""
    return any(name.startswith(part) and not any(other.startswith(part) for other in state) for part in parts)


def _layers(names: Sequence[str]) -> list[str]:
    """The layers of entries, those of a list as one: `class_heads` for `class_heads.3.weight`."""
    return list(dict.fromkeys(re.sub(r"(\.\d+)?\.\w+$", "", name) for name in names))
