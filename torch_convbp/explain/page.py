"""The page: one HTML file with its style, script and pictures within itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from torch_convbp.explain import sections
from torch_convbp.explain.layer import Layer
from torch_convbp.explain.steps import Step, Values

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A convolutional layer, forward and back</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>A convolutional layer, forward and back</h1>
<p>One small layer, step by step: a picture goes forward (L1, L2), an error comes back (L3 to L6).
The pictures hold the numbers that were computed.</p>
<nav aria-label="Steps">$links</nav>
</header>
<main>
$sections
</main>
<footer><p><code>$command</code></p></footer>
<script>
$script</script>
</body>
</html>
""")

LINKS = {
    "layer": "The layer",
    "L1": "L1 convolve",
    "L2": "L2 add, activate",
    "loss": "Loss",
    "L3": "L3 error signal",
    "L4": "L4 filters",
    "L5": "L5 biases",
    "L6": "L6 recursion",
    "erratum": "Erratum",
    "check": "Check",
}


def build(layer: Layer, values: Values, steps: Sequence[Step], command: str) -> str:
    """Return the page of a layer, the lecture's values of it and its checked steps."""
    parts = [
        sections.the_layer(layer),
        *(
            part(layer, values)
            for part in (
                sections.l1,
                sections.l2,
                sections.the_loss,
                sections.l3,
                sections.l4,
                sections.l5,
                sections.l6,
                sections.erratum,
            )
        ),
        sections.check(steps),
    ]
    beside = files(__package__)
    return PAGE.substitute(
        style=(beside / "page.css").read_text(encoding="utf-8"),
        script=(beside / "page.js").read_text(encoding="utf-8"),
        links="".join(f'<a href="#{name}">{text}</a>' for name, text in LINKS.items()),
        sections="\n".join(parts),
        command=escape(command),
    )
