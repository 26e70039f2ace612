"""Shows docstrings as they are meant: they are not quite Markdown."""

import re
import textwrap
from typing import Any

import griffe

# A tag that is none, as in RAW/<class>/<video>; code in backticks is left alone.
_CODE_OR_TAG = re.compile(r"(``.*?``|`[^`]*`)|<(?=\w)")


class Docstrings(griffe.Extension):
    """Keeps `<` from beginning a tag, and makes of the doctest at the end the section that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring before it is parsed."""
        if obj.docstring:
            text, mark, doctest = obj.docstring.value.partition("\n>>> ")
            text = _CODE_OR_TAG.sub(lambda found: found[1] or "&lt;", text)
            examples = f"\nExamples:\n{textwrap.indent(f'>>> {doctest}', '    ')}" if mark else ""
            obj.docstring.value = text + examples
