"""How many bits a policy holds: the tables, the curves and the study, of a toy size."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlora.errors import ConfigError, RunDirError
from rlora.recipes.capacity import Table, make_base, policy_on, study
from rlora.recipes.capacity_config import PRESETS, Condition, conditions_of
from rlora.recipes.capacity_report import best_curve, leaves_at, summary_of

TOY = PRESETS["toy"]


@pytest.mark.unit
def test_a_table_has_every_key_once_and_another_name_other_values() -> None:
    table, other = Table(TOY, "a"), Table(TOY, "b")
    assert len({tuple(key) for key in table.keys_KL.tolist()}) == TOY.num_keys
    assert table.keys_KL.shape == (64, 2)
    assert torch.equal(table.values_K, Table(TOY, "a").values_K)
    assert not torch.equal(table.values_K, other.values_K)
    assert TOY.table_bits == 64 * 3
    micro_batch = table.batch(torch.tensor([9, 3])).micro_batches[0]
    assert micro_batch.tokens_BT.tolist() == [[1, 1], [0, 3]]
    assert micro_batch.tokens_BT.flatten()[micro_batch.source_N].tolist() == [1, 3]  # the end of each key predicts
    assert micro_batch.target_N.tolist() == table.values_K[[9, 3]].tolist()


@pytest.mark.unit
def test_losses_are_seen_at_powers_of_the_root_of_two_and_at_the_end() -> None:
    assert replace(TOY, num_steps=20).steps_seen == [1, 2, 3, 4, 6, 8, 11, 16, 20]


@pytest.mark.unit
def test_what_is_stored_is_the_table_less_the_remaining_loss_of_the_best_rate() -> None:
    rows = [
        {"rank": 1, "rate": 1e-3, "num_numbers": 100, "losses": {"0": 6.0, "1": 5.9, "2": 5.5, "4": 5.4}},
        {"rank": 1, "rate": 1e-2, "num_numbers": 100, "losses": {"0": 6.0, "1": 5.0, "2": math.inf}},
        {"rank": 0, "rate": 1e-4, "num_numbers": 900, "losses": {"0": 6.0, "1": 5.8, "2": 5.0, "4": 1.0}},
    ]
    assert best_curve(rows) == {0: 6.0, 1: 5.0, 2: 5.0, 4: 1.0}
    one, full = summary_of(rows, table_bits=600.0, num_keys=100)
    assert (one["rank"], one["rate"], one["loss_bits"], one["stored_bits"]) == (1, 1e-2, 5.0, 100.0)
    assert (one["bits_per_number"], one["leaves_at_step"]) == (1.0, 2)
    assert (full["rank"], full["stored_bits"], full["leaves_at_step"]) == (0, 500.0, None)
    assert leaves_at({1: 6.0, 2: 6.0, 4: 3.0}, {1: 6.0, 2: 5.0, 4: 3.0}) is None  # it came back


@pytest.mark.unit
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ranks": (), "full_rates": ()}, "nothing is to be trained"),
        ({"ranks": (0,)}, r"lora\.rank is 0"),
        ({"num_symbols": 1}, "num_symbols is 1"),
        ({"hidden_size": 20}, "hidden_size is 20"),
        ({"num_steps": 0}, "num_steps is 0"),
    ],
)
def test_settings_that_make_no_study_are_refused(changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(TOY, **changes).check()


@pytest.mark.unit
def test_a_new_policy_loses_what_the_base_does_and_the_base_knows_nothing_of_the_table(tmp_path) -> None:
    config = replace(TOY, base_steps=200)
    make_base(config, tmp_path)
    own, stored = Table(config, "of the base"), Table(config, "stored")
    losses = {rank: policy_on(tmp_path, Condition(rank=rank, rate=1.0), config) for rank in (0, 1, 4)}
    assert len({stored.loss(policy) for policy in losses.values()}) == 1
    assert own.loss(losses[1]) < 2.5 < 3.0 <= stored.loss(losses[1])


@pytest.mark.loop
def test_a_study_ends_with_table_and_picture_and_goes_on_where_it_was(tmp_path) -> None:
    config = replace(TOY, run_dir=str(tmp_path / "study"), num_processes=1)
    folder = study(config)
    assert {path.stem for path in (folder / "conditions").iterdir()} == {one.name for one in conditions_of(config)}
    ranks = json.loads((folder / "table.json").read_text())["ranks"]
    assert [row["rank"] for row in ranks] == [1, 4, 0]
    for row in ranks:
        assert row["loss_bits"] < row["curve"]["0"]  # all learn something
        assert row["curve"]["0"] == ranks[0]["curve"]["0"]
    assert (folder / "plot.png").stat().st_size > 1000
    done = {path.name: path.stat().st_mtime_ns for path in (folder / "conditions").iterdir()}
    study(replace(config, ranks=(1, 2, 4)))
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "conditions").iterdir()}
    assert done.items() < after.items()
    assert after.keys() - done.keys() == {"rank2-lr0.01.json"}
    with pytest.raises(RunDirError, match=r"num_keys: 64 -> 32"):
        study(replace(config, num_keys=32))
