"""What a run is asked to do."""

import dataclasses
from typing import Any, Self

from vidcache.train.augment import Strength
from vidcache.untrusted import build


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What a run is asked to do.

    The defaults are those of the command, which chooses the device and, without weights, freezes nothing.

    Attributes:
        weights: "kinetics400", "none", or a path.
        init: Checkpoint of another run to start from, instead of `weights`.
        freeze: Last frozen stage; see `vidcache.model.R3D18`.
        num_frames_used: Frames of each clip, evenly spaced (T'); None for all.
        epochs: At most so many.
        batch_size: Clips per step (B), on all processes together.
        accumulate: Parts that a step's clips go through the model in, one after the other.
        lr: Highest learning rate of Adam.
        lr_schedule: "none" or "cosine"; see `vidcache.train.schedule`.
        warmup_epochs: Epochs in which the learning rate rises to `lr`; may be a fraction.
        weight_decay: Of Adam.
        label_smoothing: Share of the target that is spread over all classes, in training.
        clip_norm: Largest norm of all gradients together; larger ones are scaled down. None: as they are.
        balance: "both", "sampler", "loss" or "none".
        augment: "linear", "exact" or "none".
        strength: Of the augmentation.
        min_delta: Validation loss that counts as progress.
        patience: Epochs without progress before stopping.
        min_epochs: The earliest epoch that can be the last.
        amp: "auto", "off", "bf16", "fp16" or "bf16-prefix"; see `vidcache.train.precision`.
        compile: Use torch.compile.
        feature_views: Views of each training clip (K) whose features are computed once; None: anew in every epoch.
        feature_file: Where these features are kept; None is beside the cache.
        deterministic: Use only algorithms that give the same bits again, also on a GPU.
        seed: Of everything that is random.
        reader_threads: Threads that read clips.
        verify: Compare each clip with its hash whenever it is read.
        device: "cpu", "cuda", "cuda:1", ...
        shuffle_labels: Control run: the labels of the training and validation clips are permuted,
            so that an honest test accuracy must be at chance.
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
        """Build a config from what `dataclasses.asdict` gave; what an older vidcache lacked has its default.

        Raises:
            ValueError: A field is unknown, or of another type.
        """
        return build(cls, {**dataclasses.asdict(cls()), **fields})
