"""The diagnosis of runs of the toy model that have the disease, and of runs that have none."""

from dataclasses import replace

import pytest
from support.liars import later, scales
from support.runs import SIZE, toy
from support.sick import RATE, SHORT, digits, found_in, sick, stopped_by_proof, taught, write_rows
from support.supervised import sums, toy_sft

from rlora.assemble import split_problems
from rlora.commands.cli import main
from rlora.diagnosis import diagnose, health
from rlora.evaluation.held_out import EvaluationConfig
from rlora.loop import run
from rlora.lora.config import LoraConfig
from rlora.proof.probe import NUM_PROBES
from rlora.sampler.base import SamplerConfig
from rlora.sampler.build import build_sampler
from rlora.store.run_dir import metrics_rows, read_json
from rlora.supervised.config import HeldOutConfig
from rlora.supervised.loop import run as run_supervised
from rlora.tasks import DataConfig, task
from rlora.tasks.prompts import PromptConfig
from rlora.train.optimizer import OptimizerConfig
from rlora.types import SamplingParams

pytestmark = pytest.mark.loop
FAST = OptimizerConfig(learning_rate=2.9e-3)  # at the upper end of the toy's window
OWN = {"prompt": PromptConfig(template="plain"), "sampler": SamplerConfig(kind="torch", max_prompt_tokens=128)}


@pytest.fixture(scope="module")
def adder(tmp_path_factory):
    """The toy model, which solves about half of the sums."""
    return taught(tmp_path_factory.mktemp("adder"))


def test_a_reward_of_nothing_gives_no_group_a_signal(tmp_path) -> None:
    found = sick(tmp_path / "run", given={"reward": lambda completion, problem: 0.0}, samples_per_problem=4)
    assert found["no_signal"].what == (
        "no group has rewards that differ since step 0: of 32 groups 0 are all right and 32 all wrong."
    )
    assert "easier problems" in found["no_signal"].remedy
    assert health(metrics_rows(tmp_path / "run")) == "no group has rewards that differ since step 0"


def test_what_is_always_right_teaches_nothing_more(tmp_path) -> None:
    found = sick(
        tmp_path / "run", given={"reward": lambda completion, problem: 1.0}, samples_per_problem=2, num_steps=10
    )
    assert found["no_signal"].what.endswith("of 40 groups 40 are all right and 0 all wrong.")
    assert "harder problems" in found["no_signal"].remedy


def test_completions_of_one_token_are_cut_off(tmp_path, capsys) -> None:
    found = sick(tmp_path / "run", sampling=SamplingParams(max_tokens=1))
    assert next(iter(found)) == "truncation"  # the cause, before the groups that it leaves without signal
    assert "cut off since step 0: they hit the limit of 1 tokens" in found["truncation"].what
    assert "(now 1; try 2)" in found["truncation"].remedy
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "run")])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path / 'run'}: 8 steps, 2 findings\n\ntruncation: ")
    assert "To do: Raise --sampling.max-tokens" in said


def test_answers_in_a_form_that_is_not_read_are_shown(tmp_path) -> None:
    mute = taught(tmp_path, "ok then", num_updates=50)
    found = sick(tmp_path / "run", model=mute, sampling=SamplingParams(max_tokens=16))["refused_format"]
    assert "finds no answer that it can read since step 0" in found.what
    assert 1 <= len(found.examples) <= 3
    assert found.examples[0] == "'ok then': it breaks off before a marked answer"


def test_golds_in_words_are_only_compared_letter_by_letter(tmp_path) -> None:
    words = [{"question": each.question, "answer": f"the answer is {each.answer} of them"} for each in digits()]
    data = DataConfig(train=write_rows(tmp_path / "words.jsonl", words))
    found = sick(tmp_path / "run", num_steps=2, data=data, **OWN)["golds"]
    assert "8 of 8 problems" in found.what
    assert "of words/" in found.examples[0]
    assert "--reward my_module:my_function" in found.remedy


@pytest.mark.parametrize(("rate", "side"), [(1.0, "above"), (1e-9, "below")])
def test_a_rate_outside_the_window_is_seen_without_the_model(rate, side, tmp_path) -> None:
    run(toy(tmp_path / "run", **(SHORT | {"num_steps": 1, "optimizer": OptimizerConfig(learning_rate=rate)})))
    assert read_json(tmp_path / "run" / "environment.json")["sizes"] == {
        "model_type": "llama", "hidden_size": 64, "num_train": 22
    }  # fmt: skip
    (found,) = diagnose(tmp_path / "run")
    assert f"the learning rate {rate:.1e} is {side} the known window, 3.0e-04 to 3.0e-03" in found.what
    assert "--optimizer.learning-rate 9.0e-04" in found.remedy


def test_an_update_that_rounding_hides_is_seen(adder, tmp_path) -> None:
    found = sick(tmp_path / "run", model=adder, num_steps=17, optimizer=OptimizerConfig(learning_rate=1e-9))
    assert list(found) == ["rate", "below_precision"]
    assert "does not show the policy since step 0: after 17 updates" in found["below_precision"].what


def test_completions_that_are_paid_for_their_length_grow_without_more_right_answers(tmp_path) -> None:
    found = sick(
        tmp_path / "run",
        num_steps=20,
        problems_per_step=3,
        samples_per_problem=8,
        optimizer=OptimizerConfig(learning_rate=4e-4),
        reward="correct=1.0 length=0.01",
        sampling=SamplingParams(max_tokens=40),
    )["length_without_reward"]
    assert "completions grow longer and earn no more since step" in found.what
    assert "right answers from" in found.what


def test_one_answer_for_everything_is_as_right_when_it_is_dealt_out(tmp_path) -> None:
    nine = taught(tmp_path, "9", num_updates=25)
    found = sick(tmp_path / "run", model=nine)["one_answer"]
    assert found.what.startswith("nearly all answers are '9' since step 0: ")
    assert "dealt out to other problems of a step" in found.what


def test_two_problems_are_too_few(tmp_path) -> None:
    rows = [{"question": each.question, "answer": each.answer} for each in digits()]
    data = DataConfig(
        train=write_rows(tmp_path / "two.jsonl", rows[:2]), test=write_rows(tmp_path / "test.jsonl", rows[9:])
    )
    found = sick(tmp_path / "run", num_steps=6, data=data, samples_per_problem=2, **OWN)["few_problems"]
    assert found.what == "the 2 training problems were asked 12 times each: what is learned is these."


def test_a_sampler_that_forgets_the_update_ends_the_run_and_is_named(tmp_path) -> None:
    changes = SIZE | {"optimizer": FAST}  # every step makes an update
    found = stopped_by_proof(
        tmp_path / "run",
        lambda spec: later(scales(0.0), num_honest_loads=NUM_PROBES + 3)(build_sampler(spec)),
        **changes,
    )
    assert read_json(tmp_path / "run" / "end.json")["error"] == "StaleAdapterError"
    assert "the proof ended the run at step 2: the sampler does not serve version 3" in found["part_served"].what
    run(toy(tmp_path / "run", **(SHORT | changes)))  # by an honest sampler
    assert "part_served" not in found_in(tmp_path / "run")
    assert not (tmp_path / "run" / "end.json").exists()


def test_a_policy_that_forgets_what_it_could_while_its_reward_rises_is_overfitted(adder, tmp_path) -> None:
    evaluation = EvaluationConfig(every=4, num_problems=25, num_problems_during_training=25)
    config = toy(
        tmp_path / "run",
        **(SHORT | {"model": adder, "optimizer": FAST, "num_steps": 10, "evaluation": evaluation}),
        samples_per_problem=32,
    )
    config = replace(config, data=DataConfig(name="given"))
    sevens = [replace(each, answer="7") for each in task("digits").load("test")]
    run(config, problems=split_problems(config, sevens, [each for each in digits() if each.answer != "7"]))
    found = found_in(tmp_path / "run")["overfitting"]
    assert "held-out problems are solved less since step 0, while the reward rises" in found.what
    assert found.since == 0


def test_examples_that_are_learned_by_heart_are_overfitted(tmp_path) -> None:
    config = toy_sft(
        tmp_path,
        num_steps=60,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        method="full",
        lora=LoraConfig(),
        examples_per_step=8,
        evaluation=HeldOutConfig(every=5, num_examples=20),
    )
    wrong = [{"prompt": f"What is {n % 7} + {n}?", "completion": str(n * n * 7919 % 99991)} for n in range(28)]
    run_supervised(config, conversations=wrong[:8], test=wrong[8:])
    found = found_in(tmp_path / "run")["overfitting"]
    assert "the held-out loss rises since step" in found.what
    assert "adapter-best" in found.remedy


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_learns_is_healthy(method, adder, tmp_path, capsys) -> None:
    rate = FAST if method == "lora" else OptimizerConfig(learning_rate=3e-4)
    changes = {"model": adder, "method": method, "optimizer": rate, "num_steps": 20, "problems_per_step": 6}
    run(toy(tmp_path / "run", **(SHORT | changes)))
    rewards = [row["reward/mean"] for row in metrics_rows(tmp_path / "run")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3  # it does learn
    assert diagnose(tmp_path / "run") == []
    assert health(metrics_rows(tmp_path / "run")) is None
    capsys.readouterr()
    main(["check", str(tmp_path / "run")])
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: 20 steps, nothing known is wrong\n"


def test_a_supervised_run_that_learns_is_healthy(tmp_path) -> None:
    rate, evaluation = OptimizerConfig(learning_rate=1.1e-2), HeldOutConfig(every=3, num_examples=10)
    config = toy_sft(tmp_path, num_steps=12, optimizer=rate, evaluation=evaluation)
    run_supervised(config, conversations=sums(), test=sums(12, first=60))
    assert diagnose(tmp_path / "run") == []


def test_a_run_of_three_steps_is_too_young_for_most(tmp_path, capsys) -> None:
    assert sick(tmp_path / "run", num_steps=3) == {}
    capsys.readouterr()
    main(["check", str(tmp_path / "run")])
    assert "nothing known is wrong; most signs want 8 steps or more" in capsys.readouterr().out


def test_a_run_is_diagnosed_without_its_model(tmp_path, monkeypatch) -> None:
    run(toy(tmp_path / "run", **(SHORT | {"num_steps": 1, "optimizer": RATE})))
    for name in ("torch.load", "rlora.model.sources.model_dir", "rlora.model.sources.empty_model"):
        monkeypatch.setattr(name, None)
    assert diagnose(tmp_path / "run") == []
