"""The card of an exported policy: base, data, steps, scores, how to load it."""

from pathlib import Path

from rlora.model.sources import BUNDLED, BUNDLED_HUB, loadable_name, model_title
from rlora.run_config import RunConfig
from rlora.store.run_dir import metrics_rows, read_json


def model_card(run_dir: Path, config: RunConfig, step: int, note: str) -> str:
    """Return the Markdown text of the card of the policy after `step` updates of the run."""
    is_full = config.adapters is None
    is_model = bool(note)
    title = model_title(config.model)
    base = BUNDLED_HUB if config.model.name == BUNDLED else config.model.name
    header = ["---", f"base_model: {base}", f"library_name: {'transformers' if is_model else 'peft'}"]
    header += [f"tags: [{'full-fine-tuning' if is_full else 'lora'}, reinforcement-learning, rlora]", "---", ""]
    lora = config.lora
    adapter = f"| adapter | {lora.variant}, rank {lora.rank}, alpha {lora.alpha:g}, layers {lora.layers} |"
    kind = "Fully fine-tuned model" if is_full else "Merged model" if is_model else "LoRA adapter (PEFT format)"
    lines = [
        f"# {kind}: {title}, {config.data.title}, step {step}",
        "",
        f"Trained with rlora by reinforcement learning on {config.data.title}, rewarded by a verifier of answers.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base | {title}{f', revision {config.model.revision}' if config.model.revision else ''} |",
        *_copy_of_base(config),
        "| trained | every weight |" if is_full else adapter,
        f"| steps | {step} of {config.problems_per_step} problems x {config.samples_per_problem} samples |",
        f"| optimizer | AdamW, rate {config.optimizer.learning_rate:g} ({config.optimizer.schedule}) |",
        f"| loss | {config.loss.name}, {config.advantage} advantages, seed {config.seed} |",
        *_scores(run_dir, step),
        "",
    ]
    if note:
        lines += [note, ""]
    lines += ["## Use", "", *_use(config, is_model), ""]
    return "\n".join([*header, *lines])


def _scores(run_dir: Path, step: int) -> list[str]:
    lines, rows = [], metrics_rows(run_dir)
    for row in rows:
        if row["step"] == step - 1:
            lines.append(f"| training reward in the step before | {row['reward/mean']:.3f} |")
        if row["step"] == step and "evaluation/accuracy" in row:
            low, high = row["evaluation/accuracy_low"], row["evaluation/accuracy_high"]
            lines.append(
                f"| held-out accuracy, greedy | {100 * row['evaluation/accuracy']:.1f} % [{100 * low:.1f}, "
                f"{100 * high:.1f}] |"
            )
    summary_file = run_dir / "summary.json"
    if rows and step == rows[-1]["step"] + 1 and summary_file.is_file():
        summary = read_json(summary_file)
        for name in ("base", "policy"):
            low, high = summary[name]["ci95"]
            lines.append(
                f"| held-out accuracy of the {name}, greedy, {summary['num_problems']} problems | "
                f"{100 * summary[name]['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] |"
            )
    return lines or ["| scores | none were measured at this step |"]


def _copy_of_base(config: RunConfig) -> list[str]:
    if config.model.name != BUNDLED:
        return []
    return [
        f"| | trained on rlora's copy in {loadable_name(BUNDLED)}; the hub's {BUNDLED_HUB} has other weights (before "
        "they were quantised to 4 bits), so copy that folder with this one |"
    ]


def _use(config: RunConfig, is_model: bool) -> list[str]:
    if is_model:
        return ["    vllm serve FOLDER"]
    lora = f"--enable-lora --max-lora-rank {config.lora.served.rank} --lora-modules rl=FOLDER"
    return [
        "FOLDER is this one; `base_model_name_or_path` in adapter_config.json names the base.",
        "",
        f"    vllm serve {loadable_name(config.model.name)} {lora}",
        "",
        "or, with Transformers and PEFT,",
        "",
        "    from peft import AutoPeftModelForCausalLM",
        "    from transformers import AutoTokenizer",
        f'    model = AutoPeftModelForCausalLM.from_pretrained("FOLDER", dtype="{config.model.dtype}")',
        '    tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]
