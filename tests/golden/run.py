"""Chooses the runner of a case by what the case holds, never by its name."""

from __future__ import annotations

from tests.golden.case import Case, Report, UnsupportedCaseError


def run_case(case: Case) -> Report:
    """Runs one case.

    Raises:
        UnsupportedCaseError: a kind of case or a network that is not part of this version.
    """
    report = Report(case.description.get("case", case.folder.name))
    facts = case.facts
    if (case.folder / "manifest.json").is_file():
        _run_network(case, report)
    elif "parameters" in facts:
        from tests.golden.init_case import run_init

        run_init(case, report)
    elif "configurations" in facts:
        from tests.golden import operator_cases

        is_nms = isinstance(facts["configurations"], dict)
        (operator_cases.run_nms if is_nms else operator_cases.run_deform_attn)(case, report)
    elif "configs" in facts:
        from tests.golden.optimizer_case import run_optimizer

        run_optimizer(case.folder, report)
    else:
        _run_data(case, report)
    return report


def _run_network(case: Case, report: Report) -> None:
    if "steps" in case.facts:
        from tests.golden.train_case import run_steps

        run_steps(case, report)
    elif "losses" in case.facts:
        from tests.golden.train_case import run_train

        run_train(case, report)
    else:
        from tests.golden.eval_case import run_eval

        run_eval(case, report)


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
        raise UnsupportedCaseError(f"a case with the facts {', '.join(sorted(facts))} is not part of this version")
