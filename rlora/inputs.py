"""What a run is given from outside, tried as a whole before anything is loaded or written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlora.assemble import Problems
from rlora.errors import ConfigError, DataError
from rlora.lora.config import LoraConfig
from rlora.lora.inject import adapter_shapes
from rlora.lora.peft.peft_format import load_adapter_tensors
from rlora.model.limits import check_lengths
from rlora.model.sources import ModelConfig, empty_model, end_token_ids, load_tokenizer
from rlora.run_config import RunConfig
from rlora.store.origin import other_base
from rlora.system.screen import say
from rlora.tasks import task
from rlora.tasks.prompts import PromptRenderer


def check_inputs(config: RunConfig, folder: Path, problems: Problems, *, base: Mapping[str, str], is_new: bool) -> None:
    """Write every prompt once, and compare what is asked for with what the model in `folder` can hold.

    Raises:
        ConfigError: A prompt cannot be written or holds tokens that the model does not have, prompts and completions
            are longer than its positions, no token ends a completion, or a file of the model's is broken.
        AdapterError: A new run's initial adapter does not fit, or is of another base.
        DataError: Every prompt of the training is too long.
    """
    tokenizer, model = load_tokenizer(folder, config.model), empty_model(folder, config.model)
    longest = config.sampler.max_prompt_tokens
    for completion, option in (
        (config.sampling.max_tokens, "--sampling.max-tokens"),
        (config.evaluation.max_tokens, "--evaluation.max-tokens"),
    ):
        check_lengths(model.config, prompt=longest, completion=completion, option=option)
    renderer = PromptRenderer(tokenizer, config.prompt, instruction=task(config.data.task_name).instruction)
    num_rows = model.get_input_embeddings().num_embeddings
    ends = end_token_ids(folder, tokenizer, renderer.turn_end_ids())
    if beyond := [token for token in ends if token >= num_rows]:
        if len(beyond) == len(ends):
            raise ConfigError(f"all end tokens of {folder} ({beyond}) are beyond the model's {num_rows} tokens.")
        say(f"Warning: the end tokens {beyond} of {folder} are beyond the model's {num_rows} tokens, and end nothing.")
    renderer.check((*problems.train, *problems.test), num_rows=num_rows)
    if is_new and config.init_adapter is not None:
        check_init_adapter(Path(config.init_adapter), config.lora, config.model, model, base=base)
    _say_too_long(renderer, problems, longest)


def check_init_adapter(
    adapter: Path, lora: LoraConfig, model_config: ModelConfig, model: Any, *, base: Mapping[str, str]
) -> None:
    """Raise AdapterError for an adapter that a new run cannot start from; one of a doubtful base is said.

    `model` may be on the meta device; `base` are the digests of it.
    """
    if warning := other_base(adapter, model_config.name, base):
        say(f"Warning: {warning}")
    load_adapter_tensors(adapter, lora, adapter_shapes(model, lora))


def _say_too_long(renderer: PromptRenderer, problems: Problems, longest: int) -> None:
    """Say how many prompts are longer than the sampler takes: never trained on, and wrong wherever scores are made."""
    train, test = (renderer.num_too_long(part, longest) for part in (problems.train, problems.test))
    wide = "raise --sampler.max-prompt-tokens, or take a shorter --prompt.instruction"
    if train == len(problems.train):
        raise DataError(f"all {train} training prompts are longer than {longest} tokens; {wide}.")
    if train or test:
        say(
            f"Prompts of more than {longest} tokens: {train} of {len(problems.train)} in training, which are left out, "
            f"and {test} of {len(problems.test)} in the test, which count as wrong. To have them, {wide}."
        )
