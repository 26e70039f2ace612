"""The page of an analysis: one file that holds everything it shows."""

import base64
import importlib.resources
from collections.abc import Sequence
from typing import Any

import jinja2

from vidcache.preprocess.charts import Chart


def render(summary: dict[str, Any], charts: Sequence[Chart]) -> str:
    """Render the page.

    Args:
        summary: What `vidcache.preprocess.analysis_files.summarise` gave; nothing else is said.
        charts: The pictures that it names, in its order.

    Returns:
        HTML that loads nothing from anywhere.
    """
    # Escaped whatever it is: names of classes and videos are what strangers chose.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = importlib.resources.files("vidcache.preprocess").joinpath("analysis.html").read_text("utf-8")
    pictures = [base64.b64encode(chart.png).decode("ascii") for chart in charts]
    return environment.from_string(template).render(s=summary, pictures=pictures)
