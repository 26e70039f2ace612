"""The model: torchvision's R3D-18 to the key, a frozen part that stays still, weights that are checked."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.video import r3d_18

from vidcache import model as model_module
from vidcache.errors import InputError
from vidcache.model import R3D18, STAGES, build_model, frozen_stages, load_kinetics


@pytest.fixture(scope="module")
def kinetics_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the keys and shapes of the Kinetics file."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "r3d_18-b3b3357e.pth"
    torch.save(R3D18(400).state_dict(), path)
    return path


def accept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that file were the published one."""
    monkeypatch.setattr(model_module, "KINETICS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])


def test_it_is_torchvisions_r3d_18() -> None:
    ours, theirs = R3D18(22), r3d_18(num_classes=22)

    assert 122 == len(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    clips = torch.rand(1, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(clips), ours.eval()(clips))


@pytest.mark.parametrize("freeze", ["none", *STAGES, "all"])
def test_frozen_stages_have_no_gradients_and_stay_in_evaluation_mode(freeze: str) -> None:
    model = R3D18(3, freeze)
    frozen = frozen_stages(freeze)

    model.train()

    for name in STAGES:
        stage = getattr(model, name)
        assert all(parameter.requires_grad is (name not in frozen) for parameter in stage.parameters())
        assert all(module.training is (name not in frozen) for module in stage.modules())
    assert model.fc.weight.requires_grad
    assert {"none": 0, "all": 5}.get(freeze, STAGES.index(freeze) + 1 if freeze in STAGES else 0) == len(frozen)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="freeze 'layer9', expected none, stem, layer1, layer2, layer3, layer4 or all"):
        R3D18(3, "layer9")


@pytest.mark.slow
def test_the_download_is_checked_and_kept_and_the_head_is_new(
    kinetics_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(kinetics_file, monkeypatch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls: list[str] = []

    def download(url: str, dst: str, hash_prefix: str, **_: object) -> None:
        calls.append(hash_prefix)
        Path(dst).write_bytes(kinetics_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    build_model(5, "kinetics400", "none")
    model = build_model(5, "kinetics400", "none")

    assert [model_module.KINETICS_SHA256] == calls
    loaded = torch.load(tmp_path / "checkpoints" / "r3d_18-b3b3357e.pth", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert 5 == len(tensor) if name.startswith("fc.") else torch.equal(loaded[name], tensor), name


def test_a_file_of_other_weights_is_refused(
    kinetics_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = hashlib.sha256(kinetics_file.read_bytes()).hexdigest()[:8]
    with pytest.raises(InputError, match=f"sha256 begins with {found}, expected b3b3357e: not the file of https://"):
        build_model(5, str(kinetics_file), "layer2")
    with pytest.raises(InputError, match=r"none\.pth: No such file or directory, expected the file of https://"):
        load_kinetics(tmp_path / "none.pth")

    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "w.pth")
    accept(tmp_path / "w.pth", monkeypatch)
    with pytest.raises(InputError, match=r"w\.pth: no weights of a 400-class R3D-18 \(Error.*Missing key"):
        load_kinetics(tmp_path / "w.pth")


def test_without_a_download_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, dst: str, **_: object) -> None:
        raise OSError(f"no route to {url[:8]}")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)

    message = (
        rf"{tmp_path}/checkpoints/r3d_18-b3b3357e\.pth: not there, and https://\S+/r3d_18-b3b3357e\.pth cannot be "
        r"downloaded \(no route to https://\)\. .*--weights PATH; --weights none"
    )
    with pytest.raises(InputError, match=message):
        build_model(5, "kinetics400", "layer2")


def test_only_a_single_value_per_channel_uses_the_running_statistics(rng: np.random.Generator) -> None:
    norm = R3D18(2).layer4[0].conv1[1].train()
    torchs = torch.nn.BatchNorm3d(norm.num_features)
    values = torch.from_numpy(rng.normal(3, 2, (2, 512, 1, 1, 1)).astype(np.float32))

    assert torch.equal(torchs(values), norm(values))
    assert torch.equal(torchs.running_mean, norm.running_mean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torchs(values[:1])
    assert torch.equal(torchs.eval()(values[:1]), norm(values[:1]))
    assert torch.equal(torchs.running_mean, norm.running_mean)  # type: ignore[arg-type]
