"""BatchNorm over several processes: torch's own where there is one (`test_ranks.py` has two)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from vidcache.model import R3D18
from vidcache.train.distributed import SyncedBatchNorm3d, synchronise_norms


@pytest.fixture(autouse=True, scope="module")
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("store") / "s"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(4, 3, 2, 5, 5), (1, 2, 4, 3, 1), (7, 1, 1, 1, 1)])
def test_it_is_torchs_batch_norm(shape: tuple[int, ...]) -> None:
    theirs = nn.BatchNorm3d(shape[1], momentum=0.3)
    nn.init.uniform_(theirs.weight, 0.5, 2)
    nn.init.uniform_(theirs.bias)
    ours = SyncedBatchNorm3d(shape[1], momentum=0.3)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for norm in (theirs, ours):
        torch.manual_seed(1)
        for _ in range(2):
            inputs = (torch.randn(shape) * 3 + 50).to(memory_format=torch.channels_last_3d).requires_grad_()
            outputs = norm(inputs)
            norm.zero_grad()
            (outputs * torch.randn(shape)).sum().backward()
        results.append([outputs, inputs.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])

    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, atol=2e-4, rtol=1e-4)
    ours.eval()
    theirs.eval()
    assert torch.allclose(theirs(inputs), ours(inputs), atol=1e-4)


def test_a_single_value_per_channel_is_normalised_by_the_running_statistics() -> None:
    ours, model = SyncedBatchNorm3d(3), R3D18(2)
    theirs = model.stem[1].__class__(3)
    nn.init.uniform_(ours.weight, 0.5, 2)
    ours.running_mean.uniform_(-1, 1)
    ours.running_var.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    before = (ours.running_mean.clone(), ours.running_var.clone())
    results = []
    for norm in (theirs, ours):
        inputs = torch.arange(3.0).reshape(1, 3, 1, 1, 1).requires_grad_()
        outputs = norm(inputs)
        (outputs * torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1, 1)).sum().backward()
        results.append([outputs, inputs.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])

    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, atol=1e-6)
    assert torch.equal(before[0], ours.running_mean)
    assert torch.equal(before[1], ours.running_var)
    expected = (torch.arange(3.0) - before[0]) / torch.sqrt(before[1] + ours.eps) * ours.weight + ours.bias
    assert torch.allclose(expected, results[1][0].flatten(), atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    norm = SyncedBatchNorm3d(2)
    inputs = torch.randn(3, 2, 1, 2, 2, requires_grad=True)
    wanted = torch.randn(3, 2, 1, 2, 2)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (norm(x) * wanted).sum()

    value(inputs).backward()
    assert inputs.grad is not None
    for place in range(0, inputs.numel(), 5):
        step = torch.zeros(inputs.numel())
        step[place] = 1e-2
        with torch.no_grad():
            slope = (value(inputs + step.view_as(inputs)) - value(inputs - step.view_as(inputs))) / 2e-2
        assert pytest.approx(float(slope), abs=2e-2) == float(inputs.grad.flatten()[place])


def test_half_precision_stays_what_it_is() -> None:
    found = SyncedBatchNorm3d(2)(torch.randn(2, 2, 1, 3, 3, dtype=torch.bfloat16))

    assert torch.bfloat16 == found.dtype


def test_only_what_learns_is_replaced_and_names_stay() -> None:
    model = R3D18(3, "layer2")
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}

    synchronise_norms(model)

    synced = {name for name, module in model.named_modules() if isinstance(module, SyncedBatchNorm3d)}
    assert 10 == len(synced)
    assert all(name.startswith(("layer3", "layer4")) for name in synced)
    assert before == {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
