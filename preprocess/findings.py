"""Everything that is odd about a cache or a folder of videos, worst first.

The rules are in `class_findings`, `video_findings` and `shape_findings`.
"""

from collections.abc import Sequence

from vidcache.preprocess import class_findings, shape_findings, video_findings
from vidcache.preprocess.analysis import Facts
from vidcache.preprocess.finding import Finding, worst_first
from vidcache.preprocess.shortcuts import Study


def find_all(facts: Facts, study: Study, extra: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """Look for everything.

    Args:
        facts: The videos.
        study: Of the same videos.
        extra: What others have found; sorted in.
    """
    found = [
        *extra,
        *video_findings.failures(facts),
        *class_findings.missing_classes(facts),
        *class_findings.twins(facts),
        *video_findings.duplicates(facts),
        *class_findings.shortcuts(facts, study),
        *class_findings.small_classes(facts),
        *class_findings.imbalance(facts),
        *video_findings.blank_pictures(facts),
        *shape_findings.coarse_sampling(facts),
        *shape_findings.outliers(facts),
        *shape_findings.padding(facts),
        *shape_findings.mixtures(facts),
        *video_findings.high_dynamic_range(facts),
        *video_findings.left_out(facts),
    ]
    return worst_first(found)
