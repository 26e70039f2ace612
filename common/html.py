"""Pages: one file that holds everything it shows and loads nothing from anywhere."""

import base64
import hashlib
import importlib.resources

import jinja2
from markupsafe import Markup

from vidcache.text import harmless


def render_page(package: str, template: str, **values: object) -> str:
    """Render a page with the style that all pages share.

    The template gets `css`, `policy` (a Content-Security-Policy that allows nothing but what is in the page) and,
    where a file of its name with the ending .js lies beside it, `script`.

    Args:
        package: Where the template is: "vidcache.eval".
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
    script_file = folder.joinpath(template.removesuffix(".html") + ".js")
    script = script_file.read_text("utf-8") if script_file.is_file() else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return environment.from_string(folder.joinpath(template).read_text("utf-8")).render(
        css=Markup(importlib.resources.files("vidcache").joinpath("page.css").read_text("utf-8")),
        policy=f"{policy}; script-src 'sha256-{digest}'" if script else policy,
        script=Markup(script),
        **values,
    )


def _shown(value: object) -> object:
    return value if hasattr(value, "__html__") else harmless(str(value))


def data_uri(png: bytes) -> str:
    """Return a PNG as what an `<img>` can show without a file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
