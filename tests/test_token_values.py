"""What is known of each token of a step's rollouts, and how it is kept."""

import json

import numpy as np
import pytest
from support.runs import SIZE, rows, stopped, toy

from rlora.errors import RunDirError
from rlora.loop import run
from rlora.model.sources import TOY, ModelConfig, load_tokenizer, model_dir
from rlora.model.tokens import SPELLING_UNKNOWN, num_bytes_of
from rlora.store.run_dir import rollout_rows
from rlora.store.token_values import TokenValues, read_token_values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(toy(tmp_path_factory.mktemp("tokens") / "run", **SIZE))


def step_of(run_dir, step):
    texts = rollout_rows(run_dir / "rollouts" / f"step-{step:06d}.jsonl")
    return texts, read_token_values(run_dir / "rollouts" / f"step-{step:06d}.tokens")


@pytest.mark.loop
def test_a_step_keeps_the_values_of_its_tokens_in_the_order_of_its_rollouts(trained) -> None:
    for step, row in enumerate(rows(trained)):
        texts, values = step_of(trained, step)
        assert values.num_tokens_C.tolist() == [len(text["token_ids"]) for text in texts]
        is_trained_N = np.isfinite(values.entropy_N)
        assert is_trained_N.sum() == row["batch/num_trained_tokens"]
        assert abs(float(values.entropy_N[is_trained_N].astype(np.float64).mean()) - row["policy/entropy"]) < 1e-3
        differences_N = np.abs(values.difference_N[is_trained_N].astype(np.float64))
        assert abs(differences_N.mean() - row["agreement/mean_abs_logprob_difference"]) < 1e-6
        is_trained_C = np.repeat(values.advantages_C != 0, values.num_tokens_C)
        assert (is_trained_C == is_trained_N).all()


@pytest.mark.loop
def test_rewards_above_their_groups_mean_have_positive_advantages(trained) -> None:
    texts, values = step_of(trained, 0)
    by_problem: dict[str, list[tuple[float, float]]] = {}
    for text, advantage in zip(texts, values.advantages_C, strict=True):
        by_problem.setdefault(text["problem"], []).append((text["reward"], advantage))
    for pairs in by_problem.values():
        mean = sum(reward for reward, _ in pairs) / len(pairs)
        assert all(np.sign(reward - mean) == np.sign(advantage) for reward, advantage in pairs)


@pytest.mark.loop
def test_tokens_spell_the_text_of_their_rollout(trained) -> None:
    texts, values = step_of(trained, 1)
    counts = np.split(values.num_bytes_N, np.cumsum(values.num_tokens_C)[:-1])
    for text, count in zip(texts, counts, strict=True):
        said = count[:-1] if text["stop"] == "end" else count
        assert int(said.astype(int).sum()) == len(text["text"].encode())


@pytest.mark.loop
def test_a_run_that_goes_on_has_the_same_values(trained, tmp_path) -> None:
    config = toy(tmp_path / "run", **SIZE)
    stopped(config, after=3)
    run(config)
    names = sorted(path.name for path in (trained / "rollouts").glob("*.tokens"))
    assert names == [f"step-{step:06d}.tokens" for step in range(SIZE["num_steps"])]
    for name in names:
        assert (tmp_path / "run" / "rollouts" / name).read_bytes() == (trained / "rollouts" / name).read_bytes()


def values_of(**changes) -> TokenValues:
    content = {
        "num_tokens_C": np.array([1, 2], dtype=np.int32),
        "advantages_C": np.array([1, -1], dtype=np.float32),
        "num_bytes_N": np.array([1, 2, 3], dtype=np.uint8),
        "difference_N": np.zeros(3, dtype=np.float16),
        "entropy_N": np.zeros(3, dtype=np.float16),
    }
    return TokenValues(**(content | changes))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (values_of(entropy_N=np.zeros(3, dtype=np.float32)).to_bytes(), "holds other tensors"),
        (values_of(entropy_N=np.zeros((3, 1), dtype=np.float16)).to_bytes(), "holds other tensors"),
        (values_of(entropy_N=np.zeros(2, dtype=np.float16)).to_bytes(), "do not fit together"),
        (values_of(num_tokens_C=np.array([4, -1], dtype=np.int32)).to_bytes(), "do not fit together"),
    ],
)
def test_a_damaged_file_of_token_values_is_refused(content, message, tmp_path) -> None:
    path = tmp_path / "step-000000.tokens"
    path.write_bytes(content)
    with pytest.raises(RunDirError, match=message):
        read_token_values(path)


@pytest.mark.unit
def test_a_vocabulary_says_how_many_bytes_each_of_its_tokens_spells() -> None:
    config = ModelConfig(name=TOY)
    tokenizer = load_tokenizer(model_dir(config), config)
    counts = num_bytes_of(tokenizer)
    text = "12 + 3 = 15"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert int(counts[ids].astype(int).sum()) == len(text.encode())
    assert counts.dtype == np.uint8
    assert len(counts) == len(tokenizer)
    assert SPELLING_UNKNOWN == 255


@pytest.mark.unit
def test_the_rows_of_rollouts_are_as_before(tmp_path) -> None:
    """The values lie beside the rollouts, which stay plain lines that any reader of JSON takes."""
    run_dir = run(toy(tmp_path / "run"))
    line = (run_dir / "rollouts" / "step-000000.jsonl").read_text().splitlines()[0]
    assert {"problem", "text", "token_ids", "logprobs", "crc"} <= json.loads(line).keys()
