"""What an evaluation cannot say, in plain words."""

from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.data_facts import split_facts
from vidcache.eval.evaluation import Evaluation
from vidcache.eval.uncertainty import FEW_CLIPS
from vidcache.text import plural


def limits_of(reader: Reader, checkpoint: Checkpoint, found: Evaluation, *, mismatch: bool) -> list[str]:
    """List what a reader of the numbers has to know, the weightiest first.

    Args:
        reader: The cache.
        checkpoint: What was evaluated.
        found: What came out.
        mismatch: The checkpoint was trained on another cache or split, and that was accepted.
    """
    metrics, split = found.metrics, found.options.split
    facts = next(facts for facts in split_facts(reader) if facts.name == split)
    said = []
    if split == "train":
        said.append("The model was trained on these clips: the numbers say how well it remembers, not how good it is.")
    if split == "val":
        said.append("The epoch was chosen by these clips: the numbers are a little too good.")
    if mismatch:
        said.append(
            "The checkpoint was trained on another cache or another split (--allow-mismatch): clips of this "
            f"evaluation may have been trained on. Trained on cache {checkpoint.fingerprint}, split "
            f"{checkpoint.split_hash}."
        )
    if found.cleanliness.num_leaked:
        said.append(f"Not all clips are new to the model: {found.cleanliness.in_words}.")
    width = metrics.accuracy_high - metrics.accuracy_low
    said.append(
        f"With {plural(metrics.num_clips, 'clip')} the interval of the accuracy is {100 * width:.0f} points wide; half "
        "of that takes four times as many clips."
    )
    few = sum(result.is_too_few for result in metrics.per_class)
    none = sum(not result.num_clips for result in metrics.per_class)
    if few:
        verb = "has" if few == 1 else "have"
        said.append(
            f"{few} of {plural(len(metrics.per_class), 'class', 'classes')} {verb} fewer than {FEW_CLIPS} clips here: "
            "too few to claim anything of them, and the intervals of balanced accuracy and macro F1 hold less often "
            "than 19 times in 20."
        )
    if none:
        verb = "has" if none == 1 else "have"
        said.append(f"{plural(none, 'class', 'classes')} {verb} no clip here and no part in any mean.")
    if facts.num_groups < facts.num_clips:
        said.append(
            f"The {plural(facts.num_clips, 'clip')} come from {plural(facts.num_groups, 'group')}. Intervals and "
            "p-values take clips for independent; clips of one group are not: the truth may lie outside more often "
            "than 1 time in 20."
        )
    said.append(
        "The bootstrap of balanced accuracy and macro F1 takes a class of few clips to be a little like the average "
        "one: it cannot know of errors that were never made."
    )
    said.append(
        "The leak guard sees clips that look alike. It does not know which clips are of one person, place or camera "
        "unless the split was told (vidcache split --by)."
    )
    if split == "test":
        said.append(
            "These clips stay honest as long as nothing is chosen by them: whoever tries ten models and reports the "
            "best one on them reports too much."
        )
    said.append("Other cameras, people and places than those of this cache can be harder.")
    return said
