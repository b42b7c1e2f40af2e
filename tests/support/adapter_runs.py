"""Run directories whose policies are made up: known factors at known steps, and the matrices that they stand for."""

from collections.abc import Mapping
from pathlib import Path

import torch

from rlora.lora.adapter import Adapter
from rlora.lora.config import LoraConfig
from rlora.lora.flat import lay_out
from rlora.store.checkpoint import Checkpoint, CheckpointConfig, CheckpointFolder
from rlora.store.run_dir import write_json, write_snapshot
from rlora.store.trajectory import Trajectory
from rlora.train.optimizer import OptimizerState

Factors = Mapping[str, torch.Tensor]
SHAPES = {  # outputs and inputs
    "model.layers.0.self_attn.q_proj": (6, 5),
    "model.layers.0.mlp.down_proj": (5, 9),
    "model.layers.1.self_attn.q_proj": (6, 5),
    "model.layers.1.mlp.experts.0.down_proj": (5, 3),
    "model.layers.1.mlp.experts.1.down_proj": (5, 3),
    "lm_head": (11, 5),
}


def factors(rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Return random factors of all of SHAPES."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for path, (num_outputs, num_inputs) in SHAPES.items():
        found[f"{path}.lora_A"] = torch.randn(rank, num_inputs, generator=random)
        found[f"{path}.lora_B"] = torch.randn(num_outputs, rank, generator=random)
    return found


def dense(of: Factors, config: LoraConfig) -> dict[str, torch.Tensor]:
    """Return the update of each matrix (O, I), fp64: the products that a study must not form."""
    paths = [name.removesuffix(".lora_A") for name in of if name.endswith(".lora_A")]
    return {
        path: config.scale_at(len(of[f"{path}.lora_A"])) * of[f"{path}.lora_B"].double() @ of[f"{path}.lora_A"].double()
        for path in paths
    }


def flat(updates: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return all matrices of an update as one vector."""
    return torch.cat([update.flatten() for update in updates.values()])


def made_run(
    run_dir: Path,
    versions: Mapping[int, Factors],
    config: LoraConfig | None = None,
    *,
    in_checkpoints: tuple[int, ...] = (),
) -> Path:
    """Write a run directory with these versions by step: the last, and those named, as checkpoints, the rest, of which
    all may be, into the trajectory.
    """
    config = config or LoraConfig()
    last = max(versions)
    path = Trajectory(run_dir / "trajectory", most=10**6)
    checkpoints = CheckpointFolder(run_dir / "checkpoints", CheckpointConfig(keep_last=10**6))
    for step, of in versions.items():
        theta_D = torch.cat([tensor.flatten() for tensor in of.values()])
        if step != last and step not in in_checkpoints:
            path.save(step, theta_D)
            continue
        checkpoints.save(
            Checkpoint(
                step=step,
                slots=lay_out({name: tuple(tensor.shape) for name, tensor in of.items()}),
                theta_D=theta_D,
                optimizer=OptimizerState(
                    first_moment_D=torch.full_like(theta_D, 7.0),
                    second_moment_D=torch.full_like(theta_D, 7.0),
                    num_updates=step,
                ),
                position=0,
                tokens_per_micro_batch=512,
                best=0.0,
                seconds=0.0,
                problems="",
                config={"lora": {"rank": config.rank, "alpha": config.alpha, "variant": config.variant}},
                environment={},
            )
        )
    return run_dir


def shipped(run_dir: Path, of: Factors, config: LoraConfig | None = None, *, base: str = "", version: int = 9) -> Path:
    """Write a policy into `adapter/` of a run directory, trained on a base whose weights have the digest `base`."""
    adapter = Adapter(policy=0, version=version, config=config or LoraConfig(), base_model="made", tensors=of)
    write_snapshot(adapter, run_dir / "adapter", base={})
    write_json(run_dir / "environment.json", {"base": {"weights": base}} if base else {})
    return run_dir
