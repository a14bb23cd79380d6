"""Chooses the runner of a case by what the case holds, never by its name."""

from __future__ import annotations

from tests.golden.case import Case, Report


def run_case(case: Case) -> Report:
    """Runs one case.

    Raises:
        ValueError: no runner for this kind of case, or for its model family.
    """
    report = Report(case.description.get("case", case.folder.name))
    facts = case.facts
    if (case.folder / "manifest.json").is_file():
        _run_network(case, report)
    elif "parameters" in facts:
        from tests.golden.network_cases import run_init

        run_init(case, report)
    elif "configurations" in facts:
        from tests.golden import operator_cases

        is_nms = isinstance(facts["configurations"], dict)
        (operator_cases.run_nms if is_nms else operator_cases.run_deform_attn)(case, report)
    elif "groups" in facts:
        from tests.golden.optimizer_case import run_optimizer

        run_optimizer(case.folder, report)
    else:
        _run_data(case, report)
    return report


def _run_network(case: Case, report: Report) -> None:
    from tests.golden import network_cases

    config = case.description["config"]
    if not config.startswith("co_dino") or "_r50" not in config:
        raise ValueError(f"the model family of {config!r} is not part of this version")
    if "steps" in case.facts:
        network_cases.run_steps(case, report)
    elif any(key.startswith("loss/") for key in case.tensors):
        network_cases.run_train(case, report)
    else:
        network_cases.run_eval(case, report)


def _run_data(case: Case, report: Report) -> None:
    from tests.golden import data_cases

    facts = case.facts
    if "flags" in facts:
        data_cases.run_sampler(case.folder, report)
    elif "images" in facts:
        data_cases.run_preprocess(case.folder, report)
    elif "runs" in facts:
        data_cases.run_augment(case.folder, report)
    else:
        raise ValueError(f"unknown kind of case: facts {sorted(facts)}")
