"""The options of a run."""

import dataclasses
import os
from typing import Any, Self

from vidcache.train.augment import Strength
from vidcache.untrusted import build


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The options of a run; `dataclasses.asdict` of it is what checkpoints and config.json keep.

    Attributes:
        weights: Pretrained weights: "kinetics400", "none", or the path of a state dict.
        init: Checkpoint of another run to start from, instead of `weights`; None for none.
        freeze: Last frozen stage; see `vidcache.model.R3D18`.
        num_frames_used: Frames of each clip, evenly spaced (T'); None for all.
        epochs: Maximum number of epochs.
        batch_size: Clips per optimizer step, over all processes (B).
        accumulate: Gradient accumulation steps per batch.
        lr: Peak learning rate of Adam.
        lr_schedule: "none" or "cosine"; see `vidcache.train.schedule`.
        warmup_epochs: Epochs of linear warm-up; may be a fraction.
        weight_decay: Adam weight decay (L2).
        label_smoothing: Label smoothing of the training loss, 0 to 1.
        clip_norm: Maximum norm of all gradients together; None for no clipping.
        balance: Class balancing: "both", "sampler", "loss" or "none".
        augment: Augmentation method: "linear", "exact" or "none".
        strength: Strength of the augmentation.
        min_delta: Decrease of the validation loss that counts as an improvement.
        patience: Epochs without improvement before early stopping.
        min_epochs: Never stop early before this epoch.
        amp: Precision: "auto", "off" (float32), "bf16", "fp16", or "bf16-prefix" (frozen stages only).
        compile: Use torch.compile.
        feature_views: Augmented views per training clip whose frozen features are cached; None for no feature cache.
        feature_file: Path of the feature cache; None is beside the cache.
        deterministic: Use deterministic algorithms on a GPU.
        seed: Random seed.
        reader_threads: Threads that read clips.
        verify: Check the hash of each clip when it is read.
        device: "cpu", "cuda", "cuda:1", ...
        shuffle_labels: Permute the labels of the training and validation clips: a sanity check.
    """

    weights: str = "kinetics400"
    init: str | None = None
    freeze: str = "layer2"
    num_frames_used: int | None = None
    epochs: int = 30
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-4
    lr_schedule: str = "none"
    warmup_epochs: float = 0
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    balance: str = "both"
    augment: str = "linear"
    strength: Strength = Strength()
    min_delta: float = 1e-2
    patience: int = 3
    min_epochs: int = 5
    amp: str = "auto"
    compile: bool = False
    feature_views: int | None = None
    feature_file: str | None = None
    deterministic: bool = False
    seed: int = 0
    reader_threads: int = 2
    verify: bool = False
    device: str = "cpu"
    shuffle_labels: bool = False

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build a config from the result of `dataclasses.asdict`; missing fields get their default.

        Raises:
            ValueError: A field is unknown, or of another type.
        """
        return build(cls, {**dataclasses.asdict(cls()), **fields})

    @classmethod
    def from_options(cls, options: dict[str, Any], device: str) -> Self:
        """Build a config from the options of `vidtrain`, named as the fields of this class and of `Strength`.

        Without a `freeze`, a model without pretrained weights is not frozen at all. Paths become absolute, since a run
        may be resumed from another folder.

        Raises:
            TypeError: There is no such option.
        """
        options = dict(options)
        strengths = [field.name for field in dataclasses.fields(Strength) if field.name in options]
        strength = Strength(**{name: options.pop(name) for name in strengths})
        for name in ("init", "weights", "feature_file"):
            if options.get(name) and options[name] not in ("kinetics400", "none"):
                options[name] = os.path.abspath(options[name])
        if options.get("freeze") is None:
            options["freeze"] = "none" if options.get("weights") == "none" and not options.get("init") else "layer2"
        return cls(**{"strength": strength, **options, "device": device})
