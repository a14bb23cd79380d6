"""Compares our initialisation with the recorded statistics of the published one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from codetr_cli.models.build import build_model
from tests.golden.case import Case, Report
from tests.golden.network_inputs import published_names, settings_of


def run_init(case: Case, report: Report) -> None:
    """Constants equal, random entries with the same mean, deviation and range up to sampling error."""
    recorded = case.facts["parameters"]
    shapes = {name: fact["shape"] for name, fact in recorded.items()}
    torch.manual_seed(0)
    state = build_model(settings_of(case, shapes).model).state_dict()
    for published, ours in published_names(shapes).items():
        fact, value = recorded[published], state[ours].double()
        if list(value.shape) != fact["shape"]:
            report.fail(published, f"shape {list(value.shape)} instead of {fact['shape']}")
        elif fact["same_for_all_seeds"] and "values" in fact:
            wanted = torch.as_tensor(fact["values"], dtype=torch.float64)
            report(published, value.flatten(), wanted.flatten().expand(value.numel()).numpy(), 1e-6)
        else:
            _compare_statistics(report, published, value, fact)


def _compare_statistics(report: Report, name: str, value: Tensor, fact: dict[str, Any]) -> None:
    """Mean and deviation within five standard errors; the range of a bounded distribution within 5 %."""
    count, deviation = value.numel(), fact["std"]
    if deviation == 0:
        report(name, value.flatten(), np.full(count, fact["mean"]), 1e-6)
        return
    standard_error = deviation / count**0.5
    mean_error = abs(float(value.mean()) - fact["mean"]) / standard_error
    # The recorded figures come from three draws, so both sides carry sampling error; kurtosis up to the normal's 3.
    deviation_error = abs(float(value.std(unbiased=False)) - deviation) / (deviation / (2 * count) ** 0.5)
    report(f"{name} mean", 0.0 if mean_error <= 5 else mean_error, 0.0, 0.0)
    report(f"{name} std", 0.0 if deviation_error <= 6 else deviation_error, 0.0, 0.0)
    bounded = fact["max"] / deviation < 1.9 and count >= 2000  # uniform: max is sqrt(3) deviations
    if bounded:
        report(f"{name} max", float(value.max()), fact["max"], 0.05)
        report(f"{name} min", float(value.min()), fact["min"], 0.05)
