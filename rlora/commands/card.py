"""The card of an exported policy: base, data, steps, scores, how to load it."""

from functools import partial
from pathlib import Path

from rlora.evaluation.intervals import Estimate
from rlora.model.sources import BUNDLED, BUNDLED_HUB, loadable_name, model_title
from rlora.rewards import is_share
from rlora.run_config import RunConfig
from rlora.store.run_dir import metrics_rows, read_json
from rlora.supervised.config import SupervisedConfig


def model_card(run_dir: Path, config: RunConfig | SupervisedConfig, step: int, note: str) -> str:
    """Return the Markdown text of the card of the policy after `step` updates of the run."""
    is_full = config.adapters is None
    is_model = bool(note)
    title = model_title(config.model)
    base = BUNDLED_HUB if config.model.name == BUNDLED else config.model.name
    header = ["---", f"base_model: {base}", f"library_name: {'transformers' if is_model else 'peft'}"]
    is_supervised = isinstance(config, SupervisedConfig)
    by = "supervised-fine-tuning" if is_supervised else "reinforcement-learning"
    header += [f"tags: [{'full-fine-tuning' if is_full else 'lora'}, {by}, rlora]", "---", ""]
    lora = config.lora
    adapter = f"| adapter | {lora.variant}, rank {lora.rank}, alpha {lora.alpha:g}, layers {lora.layers} |"
    kind = "Fully fine-tuned model" if is_full else "Merged model" if is_model else "LoRA adapter (PEFT format)"
    lines = [
        f"# {kind}: {title}, {config.data.title}, step {step}",
        "",
        _how(config),
        "",
        "| | |",
        "| --- | --- |",
        f"| base | {title}{f', revision {config.model.revision}' if config.model.revision else ''} |",
        *_copy_of_base(config),
        "| trained | every weight |" if is_full else adapter,
        f"| optimizer | AdamW, rate {config.optimizer.learning_rate:g} ({config.optimizer.schedule}) |",
        *_training(run_dir, config, step),
        "",
    ]
    if note:
        lines += [note, ""]
    lines += ["## Use", "", *_use(config, is_model), ""]
    return "\n".join([*header, *lines])


def _how(config: RunConfig | SupervisedConfig) -> str:
    if isinstance(config, SupervisedConfig):
        return f"Trained with rlora by supervised fine-tuning on the assistant's turns of {config.data.title}."
    return f"Trained with rlora by reinforcement learning on {config.data.title}, rewarded by a verifier of answers."


def _training(run_dir: Path, config: RunConfig | SupervisedConfig, step: int) -> list[str]:
    if not isinstance(config, SupervisedConfig):
        return [
            f"| steps | {step} of {config.problems_per_step} problems x {config.samples_per_problem} samples |",
            f"| loss | {config.loss.name}, {config.advantage} advantages, seed {config.seed} |",
            *_scores(run_dir, step, config.reward),
        ]
    lines = [
        f"| steps | {step} of {config.examples_per_step} examples of at most {config.max_tokens} tokens |",
        f"| loss | cross-entropy of the assistant's tokens, seed {config.seed} |",
    ]
    for row in metrics_rows(run_dir):
        if row["step"] == step and "evaluation/loss" in row:
            low, high = row["evaluation/loss_low"], row["evaluation/loss_high"]
            lines.append(f"| held-out loss, nats a token | {row['evaluation/loss']:.3f} [{low:.3f}, {high:.3f}] |")
    rows, file = metrics_rows(run_dir), run_dir / "summary.json"
    if rows and step == rows[-1]["step"] + 1 and file.is_file():
        summary = read_json(file)
        for name in ("base", "policy"):
            nats = summary[name]["nats"]
            low, high = nats["ci95"]
            lines.append(f"| held-out loss of the {name}, nats a token | {nats['mean']:.3f} [{low:.3f}, {high:.3f}] |")
    return lines


def _scores(run_dir: Path, step: int, reward: str | None) -> list[str]:
    lines, rows, text = [], metrics_rows(run_dir), partial(Estimate.text, is_share=is_share(reward))
    what = "accuracy" if is_share(reward) else "reward"
    for row in rows:
        if row["step"] == step - 1:
            lines.append(f"| training reward in the step before | {row['reward/mean']:.3f} |")
        if row["step"] == step and "evaluation/accuracy" in row:
            mean, low, high = (row[f"evaluation/accuracy{end}"] for end in ("", "_low", "_high"))
            lines.append(f"| held-out {what}, greedy | {text(Estimate(mean=mean, low=low, high=high))} |")
    summary_file = run_dir / "summary.json"
    if rows and step == rows[-1]["step"] + 1 and summary_file.is_file():
        summary = read_json(summary_file)
        for name in ("base", "policy"):
            (low, high), mean = summary[name]["ci95"], summary[name]["accuracy"]
            lines.append(
                f"| held-out {what} of the {name}, greedy, {summary['num_problems']} problems | "
                f"{text(Estimate(mean=mean, low=low, high=high))} |"
            )
    return lines or ["| scores | none were measured at this step |"]


def _copy_of_base(config: RunConfig | SupervisedConfig) -> list[str]:
    if config.model.name != BUNDLED:
        return []
    return [
        f"| | trained on rlora's copy in {loadable_name(BUNDLED)}; the hub's {BUNDLED_HUB} has other weights (before "
        "they were quantised to 4 bits), so copy that folder with this one |"
    ]


def _use(config: RunConfig | SupervisedConfig, is_model: bool) -> list[str]:
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
