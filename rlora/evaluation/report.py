"""The results of an evaluation as a table, for the terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from rlora.evaluation.intervals import Estimate
from rlora.rewards import is_share
from rlora.text import printable

_FEW_PROBLEMS = 100


def caption(results: Mapping[str, Any]) -> str:
    """Return what a score must be reported with: model, version, sampling, template, seed, commit."""
    subject, config = results["subject"], results["config"]
    policy = f"version {subject['version']} on " if subject["adapter_sha256"] or subject.get("weights_sha256") else ""
    paired = " Differences are policy minus base, paired by problem." if _has_difference(results) else ""
    return (
        f"{policy}{subject['model_title']}; {config['samples']} samples a problem, temperature "
        f"{config['temperature']:g}, top-p {config['top_p']:g}, at most {config['max_tokens']} tokens, template "
        f"{results['template']}, seed {config['seed']}, commit {results['commit'] or 'unknown'}. Means with 95 % "
        f"intervals over problems.{paired}"
    )


def _has_difference(results: Mapping[str, Any]) -> bool:
    return any("difference" in one for one in results["benchmarks"].values())


def _has_shares(results: Mapping[str, Any]) -> bool:
    return is_share(results.get("config", {}).get("reward"))


def table_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and the rows: a benchmark's measures, then its shares of truncation and lengths."""
    arms = [arm for arm in ("base", "policy") if any(arm in one["arms"] for one in results["benchmarks"].values())]
    has_both = _has_difference(results)
    rows = [["benchmark", "measure", *arms, *(["difference"] if has_both else [])]]
    for name, one in results["benchmarks"].items():
        by_arm = [one["arms"].get(arm) for arm in arms]
        measures = [key for key in next(filter(None, by_arm)) if "@" in key]
        for index, measure in enumerate(measures):
            title = f"{name} ({one['num_problems']} problems)" if index == 0 else ""
            of_reward = measure.startswith("avg@") and not _has_shares(results)
            cells = [_text(arm and arm[measure], is_share=not of_reward) for arm in by_arm]
            paired = one.get("difference", {}).get(measure)
            difference = [_text(paired, is_share=not of_reward)] if has_both else []
            rows.append([title, measure, *cells, *difference])
        for measure, key in (("truncated", "truncated_share"), ("mean tokens", "mean_tokens")):
            cells = ["" if arm is None else _plain(key, arm[key]) for arm in by_arm]
            rows.append(["", measure, *cells, *([""] if has_both else [])])
    return rows


def _plain(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key.endswith("share") else f"{value:.0f}"


def _text(estimate: Mapping[str, Any] | None, *, is_share: bool = True) -> str:
    if not estimate:
        return ""
    low, high = estimate["ci95"]
    return Estimate(mean=estimate["mean"], low=low, high=high).text(is_share=is_share)


def terminal_tables(results: Mapping[str, Any]) -> Group:
    """Return the table for the terminal, a part for each benchmark so that it fits 80 columns, and its caption."""
    (_, *header), *rows = table_rows(results)
    tables: list[Table] = []
    for title, *cells in rows:
        if title:
            shown = Text(printable(title))
            tables.append(Table(*header, title=shown, title_justify="left", box=None, padding=(0, 2, 0, 0)))
        tables[-1].add_row(*(Text(printable(cell)) for cell in cells))
    return Group(*(Group(table, "") for table in tables), Text(printable(caption(results))))


def markdown(results: Mapping[str, Any]) -> str:
    """Return the table, its caption and the warnings in Markdown."""
    header, *rows = table_rows(results)
    lines = [_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, rows)]
    notes = [f"\n{note}" for note in warnings(results)]
    return "\n".join([*lines, "", caption(results), *notes]) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def warnings(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before quoting a number."""
    found = []
    if results.get("proof", {}).get("proof/canary_is_decided_base") == 0:
        found.append("Warning: policy and base differ by too little for the proof to tell which of them was served.")
    for name, one in results["benchmarks"].items():
        if one.get("num_trained_on"):
            found.append(f"Warning: {name}: the run was trained on {one['num_trained_on']} of its problems.")
        for arm, scores in one["arms"].items():
            score = _text(scores[f"avg@{one['samples']}"], is_share=_has_shares(results))
            if one["samples"] == 1 and one["num_problems"] <= _FEW_PROBLEMS:
                found.append(
                    f"Warning: {name}, {arm}: one sample a problem on {one['num_problems']} problems says little, "
                    f"{score}; --samples 32 says more."
                )
            if scores["truncated_share"] > 0.1:
                found.append(
                    f"Warning: {name}, {arm}: the token limit cut off {100 * scores['truncated_share']:.0f} % of the "
                    "completions; raise --max-tokens."
                )
            if scores["num_prompts_too_long"]:
                found.append(
                    f"Warning: {name}, {arm}: {scores['num_prompts_too_long']} prompts are too long and count as "
                    "wrong; raise --sampler.max-prompt-tokens."
                )
    return found
