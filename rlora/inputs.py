"""What a run is given from outside, tried as a whole before anything is loaded or written."""

from pathlib import Path

from rlora.assemble import Problems
from rlora.lora.inject import adapter_shapes
from rlora.lora.peft.peft_format import load_adapter_tensors
from rlora.model.limits import check_lengths
from rlora.model.sources import empty_model, end_token_ids, load_tokenizer
from rlora.run_config import RunConfig
from rlora.tasks import task
from rlora.tasks.prompts import PromptRenderer


def check_inputs(config: RunConfig, folder: Path, problems: Problems, *, is_new: bool) -> None:
    """Write every prompt once, and compare what is asked for with what the model in `folder` can hold.

    Raises:
        ConfigError: A prompt cannot be written or holds tokens that the model does not have, prompts and completions
            are longer than its positions, no token ends a completion, or a file of the model's is broken.
        AdapterError: A new run's initial adapter does not fit.
    """
    tokenizer, model = load_tokenizer(folder, config.model), empty_model(folder, config.model)
    longest = config.sampler.max_prompt_tokens
    for completion, option in (
        (config.sampling.max_tokens, "--sampling.max-tokens"),
        (config.evaluation.max_tokens, "--evaluation.max-tokens"),
    ):
        check_lengths(model.config, prompt=longest, completion=completion, option=option)
    renderer = PromptRenderer(tokenizer, config.prompt, instruction=task(config.data.task_name).instruction)
    end_token_ids(folder, tokenizer, renderer.turn_end_ids())
    renderer.check((*problems.train, *problems.test), num_rows=model.get_input_embeddings().num_embeddings)
    if is_new and config.init_adapter is not None:
        load_adapter_tensors(Path(config.init_adapter), config.lora, adapter_shapes(model, config.lora))
