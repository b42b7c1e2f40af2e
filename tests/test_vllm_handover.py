"""An adapter handed to vLLM in memory is the one that vLLM reads from a PEFT folder, again when it is loaded again."""

import pytest
import torch
from support.policies import make_policy

from rlora.lora.config import LoraConfig
from rlora.lora.peft.peft_format import save_adapter
from rlora.sampler.base import is_vllm_installed
from rlora.sampler.vllm import handover

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_vllm_installed(), reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM and what it imports
]
CONFIGS = {
    "rank-1": LoraConfig(),
    "rsLoRA": LoraConfig(rank=4, alpha=8.0, variant="rslora"),
    "PiSSA": LoraConfig(rank=2, variant="pissa"),
}


def loaded(folder, dtype=torch.bfloat16):
    """Return what vLLM's worker makes of a folder: per module A, B and scale."""
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(str(folder), 2048)
    modules = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    return LoRAModel.from_local_checkpoint(str(folder), modules, helper, lora_model_id=1, device="cpu", dtype=dtype)


@pytest.fixture
def installed(monkeypatch):
    """Patch vLLM for a test alone."""
    from vllm.lora.lora_model import LoRAModel

    monkeypatch.setattr(LoRAModel, "from_local_checkpoint", LoRAModel.__dict__["from_local_checkpoint"])
    monkeypatch.setattr(LoRAModel, "rlora_installed", False, raising=False)
    handover.install()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_is_handed_over_is_what_is_read(toy_dir, tmp_path, installed, config) -> None:
    adapter = make_policy(toy_dir, lora=config).snapshot()
    save_adapter(adapter, tmp_path / "read")
    expected = loaded(tmp_path / "read").loras
    handover.hand_over(adapter, tmp_path / "handed")
    assert [path.name for path in (tmp_path / "handed").iterdir()] == ["adapter_config.json"]
    for _ in range(2):  # vLLM multiplies what it was given by the scale
        loras = loaded(tmp_path / "handed").loras
        assert loras.keys() == expected.keys()
        for name, layer in loras.items():
            assert layer.lora_a.dtype == torch.bfloat16
            assert torch.equal(layer.lora_a, expected[name].lora_a)
            assert torch.equal(layer.lora_b, expected[name].lora_b)
            assert layer.scaling == expected[name].scaling
            layer.optimize()
    handover.take_back(tmp_path / "handed")
    with pytest.raises(ValueError, match="doesn't contain tensors"):
        loaded(tmp_path / "handed")


def test_a_folder_that_was_not_handed_over_is_read(toy_dir, tmp_path, installed) -> None:
    save_adapter(make_policy(toy_dir).snapshot(), tmp_path / "read")
    assert loaded(tmp_path / "read").loras


def test_tensors_lie_in_one_buffer() -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4, 1)}
    views = handover.in_one_buffer(tensors, torch.bfloat16)
    assert len({view.untyped_storage().data_ptr() for view in views.values()}) == 1
    assert all(torch.equal(views[name], tensors[name].bfloat16()) for name in tensors)
