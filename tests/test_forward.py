"""The two parts of a model are the model: folded, in each precision, with gradients where they belong."""

import copy

import pytest
import torch
from torch import nn

from vidcache.model import R3D18, STAGES, frozen_stages
from vidcache.train.backbone import PRECISIONS, Forward, folded

SHAPE = (2, 3, 4, 24, 24)


@pytest.fixture(scope="module")
def trained() -> R3D18:
    """As if it had learned: no BatchNorm is the identity."""
    torch.manual_seed(5)
    model = R3D18(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.to(memory_format=torch.channels_last_3d)


def frozen_at(trained: R3D18, stage: str) -> R3D18:
    model = R3D18(3, stage)
    model.load_state_dict(trained.state_dict())
    return model.to(memory_format=torch.channels_last_3d).train()


@pytest.mark.parametrize("stage", ["none", *STAGES, "all"])
def test_the_parts_together_are_the_model(trained: R3D18, stage: str) -> None:
    model = frozen_at(trained, stage)
    inputs = torch.rand(SHAPE)
    expected = copy.deepcopy(model)(inputs)

    forward = Forward(model, "off")
    found = forward(inputs)

    assert torch.allclose(expected, found, atol=2e-4)
    assert (stage == "none") == (forward.prefix(inputs) is inputs)
    model.eval()
    with torch.inference_mode():
        assert torch.allclose(model(inputs), forward.predict(forward.prefix(inputs)), atol=2e-4)


@pytest.mark.parametrize("stage", ["layer2", "all"])
def test_only_what_trains_has_gradients(trained: R3D18, stage: str) -> None:
    model = frozen_at(trained, stage)

    Forward(model, "off")(torch.rand(SHAPE)).sum().backward()

    frozen = frozen_stages(stage)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name.split(".")[0] in frozen), name


def test_folding_leaves_no_norm_and_the_model_as_it_was(trained: R3D18) -> None:
    model = frozen_at(trained, "layer2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages, _ = model.split()

    copied = folded(stages)

    assert not any(isinstance(module, nn.BatchNorm3d) for module in copied.modules())
    assert 10 == sum(isinstance(module, nn.BatchNorm3d) for module in stages.modules())
    inputs = torch.rand(SHAPE)
    with torch.no_grad():
        assert torch.allclose(stages(inputs), copied(inputs), atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp16"])
def test_each_part_computes_in_its_precision(trained: R3D18, precision: str) -> None:
    model = frozen_at(trained, "layer2")
    dtypes: dict[str, torch.dtype] = {}
    model.layer4[1].conv2[0].register_forward_hook(lambda _m, _i, output: dtypes.update(rest=output.dtype))
    forward = Forward(model, precision)
    inputs = torch.rand(SHAPE)

    features = forward.prefix(inputs)
    logits = forward.rest(features)

    low = torch.bfloat16
    expected = {"off": (torch.float32,) * 2, "bf16": (low, low), "bf16-prefix": (low, torch.float32)}[precision]
    assert expected == (features.dtype, dtypes["rest"])
    assert forward.prefix_dtype == features.dtype
    assert torch.float32 == logits.dtype
    assert not features.requires_grad
    exact = Forward(model, "off").prefix(inputs)
    assert float((features.float() - exact).norm() / exact.norm()) < 0.02


def test_without_frozen_stages_features_are_the_clips(trained: R3D18) -> None:
    assert torch.float32 == Forward(frozen_at(trained, "none"), "bf16").prefix_dtype


def test_compiled_parts_are_used(trained: R3D18, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap(function: object) -> object:
        return lambda inputs: function(inputs) + 1  # type: ignore[operator]

    monkeypatch.setattr(torch, "compile", wrap)
    model = frozen_at(trained, "layer2").eval()
    inputs = torch.rand(SHAPE)
    plain, compiled = Forward(model, "off"), Forward(model, "off")
    compiled.compile()

    features = plain.prefix(inputs)
    assert torch.allclose(features + 1, compiled.prefix(inputs))
    assert torch.allclose(plain.rest(features) + 1, compiled.rest(features))
    assert torch.allclose(plain.predict(features) + 1, compiled.predict(features))


def test_an_unknown_precision_is_refused(trained: R3D18) -> None:
    with pytest.raises(ValueError, match="precision 'half', expected one of off, bf16, fp16, bf16-prefix"):
        Forward(trained, "half")


def test_the_mean_at_the_end_has_a_deterministic_backward() -> None:
    """Torch's adaptive pooling has none on CUDA, but to one value it is a mean."""
    found, todo = set(), [R3D18(3)(torch.rand(SHAPE)).sum().grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    names = {type(node).__name__ for node in found}

    assert "MeanBackward1" in names
    assert not any("Adaptive" in name for name in names)
