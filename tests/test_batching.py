import pytest
import torch
from support.rollouts import completion, group

from rlora.errors import ConfigError, StaleBatchError
from rlora.train.batching import MAX_PADDING_SHARE, BatchConfig, build_batch
from rlora.types import StopReason

pytestmark = pytest.mark.unit


def test_a_row_holds_prompt_and_completions_and_says_what_predicts_what() -> None:
    groups = [group([7, 8], [completion([1, 2, 3]), completion([4, 5])], [1.0, 0.0])]
    batch = build_batch(groups, [[0.5, -0.5]], BatchConfig(), version=0)
    (part,) = batch.micro_batches
    assert part.tokens_BT.tolist() == [[7, 8, 1, 2, 4]]
    assert part.positions_BT.tolist() == [[0, 1, 2, 3, 2]]
    assert part.segments_BT.tolist() == [[0, 0, 1, 1, 2]]
    assert part.source_N.tolist() == [1, 2, 3, 1, 4]
    assert part.target_N.tolist() == [1, 2, 3, 4, 5]
    assert part.advantages_N.tolist() == [0.5, 0.5, 0.5, -0.5, -0.5]
    assert part.sampler_logprobs_N.tolist() == pytest.approx([-1.0, -1.1, -1.2, -1.0, -1.1])
    assert part.completion_N.tolist() == [0, 0, 0, 1, 1]
    assert (batch.num_positions, batch.num_padding, batch.num_unshared_positions) == (5, 0, 7)


def test_rows_without_advantage_are_left_out_but_stay_in_the_denominator() -> None:
    groups = [
        group([7], [completion([1, 2]), completion([3])], [1.0, 1.0]),
        group([8], [completion([1, 2, 3]), completion([4])], [1.0, 0.0]),
    ]
    advantages = [[0.0, 0.0], [0.5, -0.5]]
    batch = build_batch(groups, advantages, BatchConfig(), version=0)
    assert batch.num_trained_tokens == 7
    assert sum(part.target_N.numel() for part in batch.micro_batches) == 4
    kept = build_batch(groups, advantages, BatchConfig(), version=0, keep_all=True)
    assert sum(part.target_N.numel() for part in kept.micro_batches) == 7
    assert kept.num_trained_tokens == 7


def test_no_signal_at_all_gives_an_empty_batch() -> None:
    batch = build_batch([group([7], [completion([1])], [1.0])], [[0.0]], BatchConfig(), version=0)
    assert batch.micro_batches == ()
    assert batch.num_trained_tokens == 1


def test_truncated_completions_are_trained_or_masked() -> None:
    cut = completion([1, 2], stop=StopReason.LENGTH)
    groups = [group([7], [cut, completion([3])], [0.0, 1.0])]
    trained = build_batch(groups, [[-0.5, 0.5]], BatchConfig(), version=0)
    masked = build_batch(groups, [[-0.5, 0.5]], BatchConfig(mask_truncated=True), version=0)
    assert (trained.num_trained_tokens, masked.num_trained_tokens) == (3, 1)
    assert masked.micro_batches[0].target_N.tolist() == [3]


def test_micro_batches_keep_the_budget_and_hold_little_padding() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(2, 60, (200,)).tolist()
    groups = [group([7] * 5, [completion([1] * length)], [1.0], name=str(i)) for i, length in enumerate(lengths)]
    batch = build_batch(groups, [[1.0]] * 200, BatchConfig(tokens_per_micro_batch=300), version=0)
    assert all(part.tokens_BT.numel() <= 300 for part in batch.micro_batches)
    assert batch.num_padding <= MAX_PADDING_SHARE * batch.num_positions
    assert sum(part.target_N.numel() for part in batch.micro_batches) == sum(lengths)
    assert batch.num_positions - batch.num_padding == sum(4 + length for length in lengths)


def test_completions_are_spread_over_rows_when_the_row_limit_says_so() -> None:
    groups = [group([7] * 4, [completion([1, 2, 3]) for _ in range(5)], [1.0, 0.0, 0.0, 0.0, 0.0])]
    batch = build_batch(groups, [[0.8, *[-0.2] * 4]], BatchConfig(tokens_per_row=9), version=0)
    assert sorted(int(part.segments_BT.max()) for part in batch.micro_batches for _ in part.tokens_BT) == [1, 2, 2]
    alone = build_batch(groups, [[0.8, *[-0.2] * 4]], BatchConfig(tokens_per_row=0), version=0)
    assert alone.num_positions == alone.num_unshared_positions == 30


def test_a_batch_of_another_version_is_refused() -> None:
    with pytest.raises(StaleBatchError, match="completion of version 3 in the batch of version 4"):
        build_batch([group([7], [completion([1], version=3)], [1.0])], [[1.0]], BatchConfig(), version=4)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="tokens_per_micro_batch is 0"):
        BatchConfig(tokens_per_micro_batch=0).check()
    with pytest.raises(ConfigError, match="tokens_per_row is -1"):
        BatchConfig(tokens_per_row=-1).check()
