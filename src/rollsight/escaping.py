"""Foreign text, escaped for the place where it is shown.

Names of environments, arms, columns and folders, prompts, completions and error messages come from elsewhere. A
terminal obeys escape sequences in them, matplotlib typesets dollars, Plotly and Markdown have markup of their own.
"""

import html
import re

# Control characters (C0, DEL, C1), what reorders or hides text (bidirectional overrides, zero-width characters, tags),
# line separators, and halves of surrogate pairs, which stand for bytes of file names that are not UTF-8. The joiners
# U+200C and U+200D stay: scripts and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str, *, lines: bool = False) -> str:
    r"""The text with every character that cannot be seen spelt out, such as `\x1b`, `\n` or `\u202e`.

    lines: keep line breaks and tabs, of a text that may have several lines.
    """
    return _UNSEEN.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _spelt(found[0]), text)


def visible_json(text: str) -> str:
    """Strict JSON with the same characters spelt as JSON does, which reads back as the same value. A file name that is
    not UTF-8 can be printed then, too."""
    return _UNSEEN.sub(lambda found: found[0] if found[0] in "\n" else _as_utf16(found[0]), text)


def plain_label(text: str) -> str:
    """A name in a matplotlib figure: dollars are dollars, and not the ends of a formula."""
    return visible(text).replace("$", r"\$")


def plain_html(text: str) -> str:
    """A name or value in a Plotly figure, which takes tags such as `<b>` and `<a href>` in every text for markup."""
    return html.escape(visible(text), quote=False)


def markdown_cell(text: str) -> str:
    """A value in a Markdown table: on one line, and in one cell."""
    return visible(" ".join(text.split())).replace("|", "\\|")


def plain_markdown(text: str) -> str:
    """The same where the Markdown is not ours to trust: no HTML, link, picture or emphasis of the text's own."""
    return re.sub(r"([\\`*_\[\]!|])", r"\\\1", html.escape(visible(" ".join(text.split())), quote=False))


def _spelt(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _as_utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
