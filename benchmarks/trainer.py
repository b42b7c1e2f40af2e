"""Seconds of a forward and backward pass of several trainers on the same completions; prints one JSON line.

All arms train the same completions. All but TRL's and "PEFT, its own rows" compute the same positions (a prompt once
for its completions), and all but TRL's and plain full fine-tuning have the same log-probability code. Steps are passes
with all that the trainer does around them: gradients made zero, checked and clipped, and the optimizer. "plain" is
Transformers' code with our attention; PEFT has the attention that Transformers takes by default, unless said otherwise.
Arms take turns on the CPU, so that a slow minute slows all of them. Each is a process of its own, with the C library's
allocator as its users have it (ours sets it, as training does).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import ratio
from rlora.lora.config import LoraConfig
from rlora.model import attention
from rlora.model.attention import visibility_mask
from rlora.model.loading import products_for
from rlora.model.logprobs import token_logprobs
from rlora.model.sources import ModelConfig, default_device, model_dir
from rlora.system.memory import keep_freed_memory
from rlora.tracking.metrics import peak_resident_bytes
from rlora.train.batching import Batch, BatchConfig, MicroBatch, Row, build_batch, stack
from rlora.train.losses import LossConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.train.policy import Policy
from rlora.train.trainer import Trainer
from rlora.types import Completion, Group, Problem, Prompt, Rollout, StopReason, Verdict, VerdictKind

NUM_PROMPTS, NUM_SAMPLES, PROMPT_TOKENS, MAX_TOKENS = 4, 8, 46, 32  # the quickstart's shape
VOCABULARY = 40_000
Arm = Callable[[], None]


def completions(rows: int = NUM_PROMPTS, *, prompt: int = PROMPT_TOKENS, longest: int = MAX_TOKENS) -> MicroBatch:
    """Return rows of random tokens: NUM_SAMPLES completions of a prompt each, an eighth to all of `longest` long."""
    random_ = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random_.randrange(100, VOCABULARY) for _ in range(count))

    def completion(length: int) -> Completion:
        return Completion(
            token_ids=tokens(length), logprobs=(-1.0,) * length, text="", stop=StopReason.END, policy=0, version=0
        )

    lengths = [longest * (index + 1) // NUM_SAMPLES for index in range(NUM_SAMPLES)]
    return stack(
        [
            Row(
                prompt=tokens(prompt),
                completions=tuple(completion(length) for length in lengths),
                advantages=tuple((-1.0) ** index for index in range(NUM_SAMPLES)),
            )
            for _ in range(rows)
        ]
    ).to(default_device())


def loss_of(logprobs_N: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    return -((logprobs_N - batch.sampler_logprobs_N).exp() * batch.advantages_N).sum()


def ours(folder: Path, batch: MicroBatch, *, rank: int) -> Arm:
    """Our trainer's pass; its adapter is not zero, so that every product has something to do."""
    keep_freed_memory()
    policy = Policy.load(folder, ModelConfig(), LoraConfig(rank=rank), seed=0)
    with torch.no_grad():
        policy.flat.theta_D += 1e-3 * torch.randn_like(policy.flat.theta_D)

    def run() -> None:
        policy.flat.zero_grad()
        loss_of(policy.score(batch).logprobs_N, batch).backward()

    return run


def frozen(folder: Path, batch: MicroBatch, *, model: ModelConfig | None = None) -> Arm:
    """The floor: the same pass without any adapter, back to the embeddings' output."""
    model = model or ModelConfig()
    keep_freed_memory()
    policy = Policy.load(folder, model, LoraConfig(), seed=0)
    policy.model.get_input_embeddings().register_forward_hook(lambda _module, _input, out: out.requires_grad_())

    def run() -> None:
        with policy.adapter_off():
            logprobs_N = policy.score(batch).logprobs_N
        loss_of(logprobs_N, batch).backward()

    return run


def _plain(folder: Path, attention_name: str = attention.ATTENTION) -> Any:
    from transformers import AutoModelForCausalLM

    attention.register()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=attention_name, use_safetensors=True
    )
    return model.to(default_device())


def _hidden(model: Any, batch: MicroBatch) -> torch.Tensor:
    hidden_BTH = model(
        input_ids=batch.tokens_BT,
        position_ids=batch.positions_BT,
        attention_mask=visibility_mask(batch.segments_BT),
        use_cache=False,
    ).last_hidden_state
    return hidden_BTH.flatten(0, 1)[batch.source_N]


def full(folder: Path, batch: MicroBatch) -> Arm:
    """Our trainer's pass with every weight trained (--method full)."""
    keep_freed_memory()
    policy = Policy.load(folder, ModelConfig(), None, seed=0)

    def run() -> None:
        policy.flat.zero_grad()
        loss_of(policy.score(batch).logprobs_N, batch).backward()

    return run


def plain_full(folder: Path, batch: MicroBatch) -> Arm:
    """Full fine-tuning as Transformers does it: bf16 weights with gradients, logits of the trained tokens kept."""
    model = _plain(folder)

    def run() -> None:
        model.zero_grad()
        logits_NV = model.lm_head(_hidden(model.model, batch)).float()
        logprobs_N = logits_NV.log_softmax(-1).gather(1, batch.target_N[:, None]).squeeze(1)
        loss_of(logprobs_N, batch).backward()

    return run


def peft(folder: Path, batch: MicroBatch, *, attention_name: str = "sdpa", is_padded: bool = False) -> Arm:
    """PEFT at rank 1 with our log-probabilities, on our rows or (`is_padded`) on a padded row a completion."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    model: Any = get_peft_model(
        _plain(folder, attention_name), PeftConfig(r=1, lora_alpha=32, target_modules="all-linear")
    )
    causal = model.base_model.model
    head_VH = causal.lm_head.weight.detach()
    products = products_for(ModelConfig(), default_device())
    rows = _separate(batch)
    tokens_BT = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
    mask_BT = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    is_source_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
    is_source_BT[:, rows["prompt_ids"].shape[1] - 1 : -1] = rows["completion_mask"].bool()

    def run() -> None:
        model.zero_grad()
        if is_padded:
            hidden_BTH = causal.model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
            hidden_NH = hidden_BTH[is_source_BT]
        else:
            hidden_NH = _hidden(causal.model, batch)
        logprobs_N, _ = token_logprobs(hidden_NH, head_VH, batch.target_N, dtype=torch.float32, products=products)
        loss_of(logprobs_N, batch).backward()

    return run


def trl(folder: Path, batch: MicroBatch) -> Arm:
    """The loss that TRL's GRPOTrainer computes for the same completions, with PEFT at rank 1; no checkpointing."""
    from datasets import Dataset
    from peft import LoraConfig as PeftConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir="build/trl",
        per_device_train_batch_size=NUM_SAMPLES,
        num_generations=NUM_SAMPLES,
        max_completion_length=MAX_TOKENS,
        bf16=True,
        beta=0.0,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        processing_class=AutoTokenizer.from_pretrained(folder),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        peft_config=PeftConfig(r=1, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    inputs = _separate(batch)

    def run() -> None:
        model.zero_grad()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, dict(inputs))
        loss.backward()

    return run


def _separate(batch: MicroBatch) -> dict[str, torch.Tensor]:
    """Return the batch as TRL holds it: a row a completion, with the prompt before it, padded on the right."""
    prompts, completions_, advantages = [], [], []
    for index in range(int(batch.completion_N.max()) + 1):
        chosen_N = batch.completion_N == index
        row = int(batch.source_N[chosen_N][0]) // batch.tokens_BT.shape[1]
        prompts.append(batch.tokens_BT[row, batch.segments_BT[row] == 0])
        completions_.append(batch.target_N[chosen_N])
        advantages.append(batch.advantages_N[chosen_N][0])
    padded = torch.nn.utils.rnn.pad_sequence(completions_, batch_first=True)
    lengths = torch.tensor([len(one) for one in completions_], device=padded.device)
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    prompt_ids = torch.stack(prompts)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": padded,
        "completion_mask": mask.long(),
        "advantages": torch.stack(advantages),
        "num_items_in_batch": mask.sum(),
    }


def step(folder: Path, batch: MicroBatch, *, rank: int | None) -> Arm:
    """A whole update of our trainer on the batch: forward, backward and optimizer; `rank` None trains every weight."""
    lora = None if rank is None else LoraConfig(rank=rank)
    policy = Policy.load(folder, ModelConfig(), lora, seed=0)
    rate = 1e-5 if rank is None else 3e-4
    trainer = Trainer(policy, OptimizerConfig(learning_rate=rate), LossConfig())

    def run() -> None:
        trainer.apply(
            Batch(
                micro_batches=(batch,),
                num_trained_tokens=len(batch.target_N),
                version=policy.version,
                num_positions=batch.tokens_BT.numel(),
                num_padding=int((batch.segments_BT < 0).sum()),
                num_unshared_positions=batch.tokens_BT.numel(),
            )
        )

    return run


ARMS: dict[str, Callable[[Path, MicroBatch], Arm]] = {
    "frozen": frozen,
    "frozen, not compiled": lambda folder, batch: frozen(folder, batch, model=ModelConfig(compile="off")),
    "rank 1": lambda folder, batch: ours(folder, batch, rank=1),
    "rank 32": lambda folder, batch: ours(folder, batch, rank=32),
    "full": full,
    "plain full": plain_full,
    "PEFT": peft,
    "PEFT, our attention": lambda folder, batch: peft(folder, batch, attention_name=attention.ATTENTION),
    "PEFT, its own rows": lambda folder, batch: peft(folder, batch, is_padded=True),
    "TRL": trl,
}
STEPS: dict[str, Callable[[Path, MicroBatch], Arm]] = {
    "step, rank 1": lambda folder, batch: step(folder, batch, rank=1),
    "step, rank 32": lambda folder, batch: step(folder, batch, rank=32),
    "step, full": lambda folder, batch: step(folder, batch, rank=None),
}


def rounds(arms: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds that each arm returns; the arms take turns, and two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 2):
        for name, run in arms.items():
            passed = run()
            if repeat >= 2:
                seconds[name].append(passed)
    return seconds


def timed(run: Arm) -> Callable[[], float]:
    """Return what runs an arm once and returns its seconds."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds


def serve(name: str, folder: Path, batch: MicroBatch) -> None:
    """Run an arm once for each line on stdin, and print its seconds."""
    run = timed((ARMS | STEPS)[name](folder, batch))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)


@contextmanager
def process(name: str, shape: list[str]) -> Iterator[Callable[[], float]]:
    """Start an arm as a process, and yield what runs it once and returns its seconds."""
    command = [sys.executable, "-m", "benchmarks.trainer", "serve", "--arms", name, *shape]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "ready\n":
            assert line, f"{name} ended"

        def run() -> float:
            print(file=child.stdin)
            return float(child.stdout.readline())

        yield run
        child.stdin.close()


def useful_share(folder: Path, batch: MicroBatch, repeats: int) -> float:
    """Return useful operations a second of a rank-1 pass over this machine's rate of bf16 products of its own shapes.

    Useful are two operations a weight, position and pass (forward, and backward to the inputs: two thirds of full
    fine-tuning's) of unpadded positions, and of the unembedding at trained positions alone.
    """
    policy_arm = ours(folder, batch, rank=1)
    config = json.loads((folder / "config.json").read_text())
    hidden, inner, layers = (config[f"{name}"] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    shapes = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), *[(hidden, inner)] * 2]
    shapes.append((inner, hidden))
    positions, trained = int((batch.segments_BT >= 0).sum()), len(batch.target_N)
    useful = 4 * (layers * sum(a * b for a, b in shapes) * positions + hidden * config["vocab_size"] * trained)
    sixteen: Any = {"dtype": torch.bfloat16, "device": batch.tokens_BT.device}
    inputs = {size: torch.randn(positions, size, **sixteen) for size in (hidden, keys, inner)}
    weights = [torch.randn(rows, columns, **sixteen) for columns, rows in shapes]

    def products() -> None:
        for weight_OI in weights:
            inputs[weight_OI.shape[1]] @ weight_OI.T
            inputs[weight_OI.shape[0]] @ weight_OI

    seconds = rounds({"pass": timed(policy_arm), "products": timed(products)}, repeats)
    return ratio(seconds["products"], seconds["pass"]) * useful / (4 * positions * sum(a * b for a, b in shapes))


def wide_model(folder: Path, *, hidden: int = 1024) -> Path:
    """Write a Llama of random weights, `hidden` wide, with the bundled model's tokenizer, and return its folder."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=8,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    for file in model_dir(ModelConfig()).glob("token*"):
        shutil.copy(file, folder)
    return folder


def peak_bytes(longest: int) -> int:
    """Return the process's peak memory in bytes after an update on completions of at most `longest` tokens."""
    policy = Policy.load(model_dir(ModelConfig()), ModelConfig(), LoraConfig(), seed=0)
    trainer = Trainer(policy, OptimizerConfig(), LossConfig())
    batch = completions(1, longest=longest)
    text = [batch.target_N[batch.completion_N == index].tolist() for index in range(NUM_SAMPLES)]
    rollouts = tuple(
        Rollout(
            completion=Completion(
                token_ids=tuple(tokens),
                logprobs=(-1.0,) * len(tokens),
                text="",
                stop=StopReason.END,
                policy=0,
                version=0,
            ),
            verdict=Verdict(kind=VerdictKind.WRONG, reward=0.0),
        )
        for tokens in text
    )
    problem = Problem(id="x", question="", answer="", source="")
    prompt = Prompt(problem=problem, text="", token_ids=tuple(batch.tokens_BT[0, :PROMPT_TOKENS].tolist()))
    groups, advantages = [Group(prompt=prompt, rollouts=rollouts)] * 4, [[(-1.0) ** i for i in range(NUM_SAMPLES)]] * 4
    trainer.apply(build_batch(groups, advantages, BatchConfig(tokens_per_micro_batch=1024), version=0))
    return peak_resident_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["arms", "serve", "useful", "memory"])
    parser.add_argument(
        "--arms", default=";".join(ARMS), help="arms to time, joined by semicolons; all but steps when left out"
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--model", type=Path, help="arms: folder of a model; the bundled one when left out")
    parser.add_argument("--rows", type=int, default=NUM_PROMPTS, help="arms: prompts, each with 8 completions")
    parser.add_argument("--prompt", type=int, default=PROMPT_TOKENS, help="arms: tokens of a prompt")
    parser.add_argument("--longest", type=int, default=MAX_TOKENS, help="tokens of the longest completion")
    options = parser.parse_args()
    folder = options.model or model_dir(ModelConfig())
    batch = completions(options.rows, prompt=options.prompt, longest=options.longest)
    if options.what == "arms":
        shape = [
            f"--{name}={value}" for name in ("model", "rows", "prompt", "longest") if (value := getattr(options, name))
        ]
        names = options.arms.split(";")
        # a GPU's memory may not hold all of them at once, and no slow minute is shared there
        together = [[name] for name in names] if torch.cuda.is_available() else [names]
        result: dict[str, Any] = {}
        for group in together:
            with ExitStack() as stack:
                arms = {name: stack.enter_context(process(name, shape)) for name in group}
                result |= rounds(arms, options.repeats)
    elif options.what == "serve":
        serve(options.arms, folder, batch)
        return
    elif options.what == "memory":
        result = {"peak_bytes": peak_bytes(options.longest)}
    else:
        with tempfile.TemporaryDirectory() as temporary:
            result = {
                "135M": useful_share(folder, batch, options.repeats),
                "hidden 1024": useful_share(wide_model(Path(temporary)), batch, options.repeats),
            }
    print("RESULT" + json.dumps(result))


if __name__ == "__main__":
    main()
