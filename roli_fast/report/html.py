"""The elements of a page, with all text escaped, and the page around them."""

import base64
import html
import string
from collections.abc import Iterable, Sequence

from .pictures import Picture

# Nothing may be loaded from anywhere, and nothing runs: the browser itself sees to it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

_STYLE = """
:root { color-scheme: light; --line: #d5d5d5; --quiet: #555; --link: #0060a0; --good: #00694c; --bad: #a33b00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 2.75rem 0 .75rem; padding-top: .75rem;
     border-top: 2px solid #1a1a1a; }
h3 { font-size: 1.08rem; margin: 1.75rem 0 .5rem; }
h1, h2, h3, p, li, dd, figcaption { overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 75ch; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: .75rem 0; padding: 0; }
.quiet { color: var(--quiet); font-size: .9rem; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
.caption { color: var(--quiet); font-size: .85rem; margin: .75rem 0 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere;
                                 min-width: 7.5rem; }
th { font-weight: 600; }
tbody th { font-weight: 500; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); padding: .25rem 0; }
.pictures { display: grid; gap: 1.5rem 2rem; margin: .75rem 0;
            grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); align-items: start; }
.examples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figure { margin: 0; max-width: 560px; }
img { display: block; width: 100%; height: auto; }
.examples img { image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { color: var(--quiet); font-size: .88rem; margin-top: .35rem; }
.examples figcaption { color: inherit; }
.checks { list-style: none; padding: 0; max-width: 75ch; }
.checks li { border-left: 5px solid var(--good); padding: .1rem .75rem; margin: .6rem 0; }
.checks li.failed { border-left: 5px double var(--bad); background: #fff4ee; }
.checks strong { color: var(--good); }
.checks .failed strong { color: var(--bad); }
dl { display: grid; grid-template-columns: fit-content(42%) minmax(0, 1fr); gap: .15rem 1.25rem; margin: .5rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
@media print { main { max-width: none; } figure, .checks li { break-inside: avoid; } }
"""  # noqa: E501


def page(title: str, body: Iterable[str]) -> str:
    return _PAGE.substitute(
        policy=html.escape(_POLICY), title=html.escape(title), style=_STYLE.lstrip(), body="\n".join(body)
    )


def element(name: str, content: object, **attributes: str) -> str:
    """An element around text, which is escaped. Attributes are named as in HTML, with _ for -; class_ stands
    for class."""
    return _wrapped(name, html.escape(str(content)), attributes)


def around(name: str, content: Iterable[str], **attributes: str) -> str:
    """An element around other elements."""
    return _wrapped(name, "\n".join(content), attributes)


def _wrapped(name: str, inside: str, attributes: dict[str, str]) -> str:
    given = "".join(f' {n.rstrip("_").replace("_", "-")}="{html.escape(v)}"' for n, v in attributes.items())
    return f"<{name}{given}>{inside}</{name}>"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in a box of its own, which scrolls if the screen is narrower."""
    head = around("tr", [element("th", column, scope="col") for column in columns])
    body = [
        around("tr", [element("th", first, scope="row"), *(element("td", cell) for cell in rest)])
        for first, *rest in rows
    ]
    inside = around("table", [around("thead", [head]), around("tbody", body)], aria_label=caption)
    # Without a mouse, a box that scrolls has to be reached by the keyboard.
    box = around("div", [inside], class_="scroll", role="region", tabindex="0", aria_label=caption)
    return element("p", caption, class_="caption") + box


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of names, and what each stands for."""
    return around("dl", [element("dt", name) + element("dd", what) for name, what in pairs])


def folded(summary: str, content: Iterable[str]) -> str:
    return around("details", [element("summary", summary), *content])


def pictures(shown: Iterable[Picture], class_: str = "pictures") -> str:
    return around("div", [_figure(picture) for picture in shown], class_=class_)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    width, height = (int.from_bytes(picture.png[at : at + 4], "big") for at in (16, 20))  # PNG's header
    image = (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(picture.alt)}" '
        f'width="{width}" height="{height}">'
    )
    return around("figure", [image, element("figcaption", picture.caption)])
