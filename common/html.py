"""Pages: one file that holds everything it shows and loads nothing from anywhere."""

import base64
import importlib.resources

import jinja2
from markupsafe import Markup

from vidcache.text import harmless


def render_page(package: str, template: str, **values: object) -> str:
    """Render a page with the style that all pages share.

    The template gets `css` and `policy`, a Content-Security-Policy that allows what is in the page, and no script.

    Args:
        package: Where the template is: "vidcache.eval.report".
        template: Its file.
        values: Everything else that it names. Names of classes and videos are what strangers chose: all is escaped
            that is not `Markup`, control characters too.

    Raises:
        jinja2.UndefinedError: The template names something that is not there.
    """
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = importlib.resources.files(package)
    return environment.from_string(folder.joinpath(template).read_text("utf-8")).render(
        css=Markup(importlib.resources.files("vidcache").joinpath("page.css").read_text("utf-8")),
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        **values,
    )


def _shown(value: object) -> object:
    return value if hasattr(value, "__html__") else harmless(str(value))


def data_uri(png: bytes) -> str:
    """Return a PNG as what an `<img>` can show without a file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
