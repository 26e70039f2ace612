"""The page of an analysis: one file that holds everything it shows."""

from collections.abc import Sequence
from typing import Any

from vidcache.page import data_uri, render_page
from vidcache.preprocess.charts import Chart


def render(summary: dict[str, Any], charts: Sequence[Chart]) -> str:
    """Render the page.

    Args:
        summary: What `vidcache.preprocess.analysis_files.summarise` gave; nothing else is said.
        charts: The pictures that it names, in its order.

    Returns:
        HTML that loads nothing from anywhere.
    """
    pictures = [data_uri(chart.png) for chart in charts]
    return render_page("vidcache.preprocess", "analysis.html", s=summary, pictures=pictures)
