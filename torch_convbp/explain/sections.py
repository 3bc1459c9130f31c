"""The parts of the page, one function for each: words, an equation, and its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from torch_convbp import lecture
from torch_convbp.explain.drawing import Box, curve, heat_map, number, photograph
from torch_convbp.explain.layer import RANDOM, Layer
from torch_convbp.explain.mathml import (
    equation,
    fraction,
    inline,
    partial,
    prime,
    row,
    sub,
    tilde,
    total,
    word,
)
from torch_convbp.explain.steps import Step, Values, loss, one_filters_share

WIDTH = 54.0  # rem for the maps and signs of one row
SIGN = 2.1  # rem for a sign between two maps
LARGEST = 1.7  # rem a cell

A_K, A_O, P_O, DELTA = sub("a", "k"), sub("a", "o"), sub("p", "o"), sub("δ", "o")
W_OK, B_OK, FLIPPED = sub("w", "ok"), sub("b", "ok"), sub(tilde("w"), "ok")
G_PRIME = row(prime("g"), "(", P_O, ")")


def low(*indices: int) -> str:
    """Indices as they are written below a letter; the lecture counts maps from 1."""
    return "".join(chr(ord("₀") + index + 1) for index in indices)


def cell_for(columns: float, signs: int, largest: float = LARGEST) -> float:
    """The rem a cell may take where ``columns`` cells and ``signs`` signs share a row."""
    return min(largest, (WIDTH - SIGN * signs) / columns)


def scale_of(*maps: Tensor) -> float:
    """The largest magnitude: maps drawn on one scale can be compared."""
    return max(m.abs().max().item() for m in maps)


def figure(*parts: str, kind: str = "") -> str:
    """Maps and signs in a row, which wraps on a narrow screen."""
    return f'<div class="row {kind}">{"".join(parts)}</div>'


def sign(text: str) -> str:
    """What stands between two maps."""
    return f'<span class="sign">{text}</span>'


def drawn(
    values: Tensor,
    name: str,
    *,
    scale: float,
    cell: float,
    note: str = "",
    window: Box | None = None,
    inside: Box | None = None,
) -> str:
    """A map under its name; the note under it, or its size."""
    picture = heat_map(values, label=name, scale=scale, cell=cell, window=window, inside=inside)
    size = note or f"{values.shape[0]} × {values.shape[1]}"
    return (
        f"<figure>{picture}<figcaption><b>{escape(name)}</b> "
        f"<span>{escape(size)}</span></figcaption></figure>"
    )


def section(tag: str, title: str, *parts: str) -> str:
    """A section under its number, or its word."""
    name = tag if tag.startswith("L") and tag[1:].isdigit() else tag.split()[-1].lower()
    return (
        f'<section id="{name}"><h2><span class="tag">{tag}</span> {escape(title)}</h2>'
        f"{''.join(parts)}</section>"
    )


def beside(words: str, *equations: str) -> str:
    """Words on the left, equations on the right; below each other on a narrow screen."""
    return f'<div class="beside"><div>{words}</div><div>{"".join(equations)}</div></div>'


# --- a window that slides -----------------------------------------------------------------------


@dataclass(frozen=True)
class Slide:
    """A kernel sliding over a source; each of its positions gives one entry of the result.

    source, kernel and result are maps with the names ``names``; ``minus`` is subtracted from each
    sum; ``inside`` says which part of the source is no padding, ``note`` what the result is.
    """

    names: tuple[str, str, str]
    source: Tensor
    kernel: Tensor
    result: Tensor
    minus: float | None = None
    inside: Box | None = None
    note: str = ""

    def sum_at(self, i: int, j: int) -> str:
        """One entry of the result in numbers; products with zero are left out."""
        height, width = self.kernel.shape
        window = self.source[i : i + height, j : j + width]
        pairs = zip(window.flatten().tolist(), self.kernel.flatten().tolist(), strict=True)
        products = [f"{factor(x)}\u00a0·\u00a0{factor(y)}" for x, y in pairs if x and y]
        text = " + ".join(products) or "0"
        if len(products) > height * width or len(products) > 9:
            text = f"a sum of {len(products)} products that are not zero"
        if self.minus is not None:
            text += f" − {number(self.minus, 3)}"
        value = number(self.result[i, j].item(), 3)
        of = f"{self.names[2]}[{i}, {j}]" + (f", {self.note}:" if self.note else " =")
        return f"{of} {text}" + ("" if text == value else f" = {value}")

    def draw(self) -> str:
        """The three maps with a window at the largest entry of the result, and its sum.

        With a script that runs, a slider moves the window; without, the picture is complete.
        """
        columns = self.source.shape[1] + self.kernel.shape[1] + self.result.shape[1]
        cell = cell_for(columns, 2)
        # A small kernel keeps its numbers where large maps have no room for theirs.
        kernel_cell = max(cell, 1.2) if self.kernel.shape[1] <= 3 else cell
        height, width = self.result.shape
        start = int(self.result.abs().argmax())
        i, j = divmod(start, width)
        window = Box(i, j, *self.kernel.shape)
        sums = [self.sum_at(i, j) for i in range(height) for j in range(width)]
        maps = [
            drawn(m, name, scale=scale_of(m), cell=size, note=note, window=box, inside=inside)
            for m, name, size, note, box, inside in (
                (self.source, self.names[0], cell, "", window, self.inside),
                (self.kernel, self.names[1], kernel_cell, "", None, None),
                (self.result, self.names[2], cell, self.note, Box(i, j, 1, 1), None),
            )
        ]
        data = json.dumps(sums, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        return (
            f'<div class="slide" data-columns="{width}" data-start="{start}">'
            f"{figure(maps[0], sign('∗'), maps[1], sign('='), maps[2])}"
            f'<p class="sum">{escape(sums[start])}</p>'
            f'<script type="application/json">{data}</script></div>'
        )


def factor(value: float) -> str:
    """A factor of a product, in brackets where it is negative."""
    text = number(value, 3)
    return f"({text})" if value < 0 else text


# --- the sections -------------------------------------------------------------------------------


def the_layer(layer: Layer) -> str:
    """What goes in: the picture, its maps, the filters and biases."""
    maps, (outputs, _, *taps) = layer.picture.maps, layer.w.shape
    count, height, width = maps.shape
    cell = cell_for(width * (count + 1), 2, 1.3)
    scale = scale_of(layer.w)
    shown = [
        f'<figure><img class="pixels" alt="The picture: {escape(layer.picture.title)}" '
        f'src="{photograph(maps)}" style="--width:{width * cell:.2f}rem">'
        f"<figcaption><b>{escape(layer.picture.title)}</b></figcaption></figure>",
        sign("→"),
        *(
            drawn(m, f"a{low(k)}", scale=1.0, cell=cell, note=layer.picture.names[k])
            for k, m in enumerate(maps)
        ),
    ]
    filters = []
    for o, name in enumerate(layer.filter_names):
        kind = "drawn at random" if name == RANDOM else f"“{name}”"
        cells = [
            drawn(
                layer.w[o, k],
                f"w{low(o, k)}",
                scale=scale,
                cell=LARGEST,
                note=f"b{low(o, k)} = {number(layer.b[o, k].item())}",
            )
            for k in range(count)
        ]
        filters.append(f'<div class="bank"><p>output {o + 1}: {kind}</p>{figure(*cells)}</div>')
    m, n = (size - tap + 1 for size, tap in zip((height, width), taps, strict=True))
    facts = (
        f"<p>The layer has <b>K = {count}</b> input {plural('map', count)} of "
        f"<b>{height} × {width}</b> and <b>O = {outputs}</b> output {plural('map', outputs)}. "
        f"A filter of <b>{taps[0]} × {taps[1]}</b> for each pair of them, laid on wherever it "
        f"fits, leaves <b>{m} × {n}</b>. Everything is computed in float64.</p>"
    )
    return section(
        "The layer",
        "a small picture, a few filters",
        facts,
        figure(*shown),
        '<p class="legend"><span class="bar"></span>blue is negative, white is zero, orange is '
        "positive; each kind of map has a scale of its own</p>",
        f'<div class="banks">{"".join(filters)}</div>',
    )


def plural(word: str, count: int) -> str:
    """map, or maps."""
    return word if count == 1 else word + "s"


def l1(layer: Layer, values: Values) -> str:
    """Flip, and the valid convolution of every pair."""
    outputs, maps, height, width = layer.w.shape
    flipped = lecture.flip(layer.w)
    o = 0
    scale = scale_of(layer.w)
    slide = Slide(
        (f"a{low(0)}", f"w̃{low(o, 0)}", f"p{low(o, 0)}"),
        layer.a[0, 0],
        flipped[o, 0],
        values.p_pairs[0, o, 0],
        layer.b[o, 0].item(),
    )
    turned = figure(
        drawn(layer.w[o, 0], f"w{low(o, 0)}", scale=scale, cell=LARGEST),
        sign("↻ 180°"),
        drawn(flipped[o, 0], f"w̃{low(o, 0)}", scale=scale, cell=LARGEST),
    )
    words = (
        "<p>A convolution turns its filter by 180 degrees, lays it on the map, multiplies what "
        "lies on each other and adds. Where the whole filter fits there is an output: the "
        f"convolution is <em>valid</em>, and each of its entries is a sum of {height} × {width} "
        "products. Each pair of maps has a bias, subtracted. What torch calls "
        "<code>weight</code> is the filter already turned.</p>"
    )
    pairs = values.p_pairs[0]
    cell = cell_for(pairs.shape[-1] * maps, maps, 0.62)
    grid = [
        figure(
            *(
                drawn(pairs[o, k], f"p{low(o, k)}", scale=scale_of(pairs), cell=cell, note=" ")
                for k in range(maps)
            )
        )
        for o in range(outputs)
    ]
    several = outputs * maps > 1
    return section(
        "L1",
        "Flip the filter, slide it, pair by pair",
        beside(
            words,
            equation(
                row(sub("p", "ok"), "[m,n]="),
                row(total("r,s"), A_K, "[m+r,n+s]"),
                row(FLIPPED, "[r,s]"),
                row("-", B_OK),
            ),
            turned,
        ),
        slide.draw(),
        "<p>Every pair of an output and an input map gets one such map:</p>" if several else "",
        f'<div class="banks">{"".join(grid)}</div>' if several else "",
    )


def l2(layer: Layer, values: Values) -> str:
    """The sum over k, and g."""
    outputs, maps, _, columns = values.p_pairs.shape[1:]
    g = layer.activation
    # The summands a third of the size of what they add up to, so that they share a row with it.
    large = cell_for((maps / 3 + 2) * columns, maps + 1, 1.6)
    small = large / 3
    pairs, p, a = values.p_pairs[0], values.p[0], values.a[0]
    scale = scale_of(pairs, p)
    lines = []
    for o in range(outputs):
        summands: list[str] = []
        for k in range(maps):
            summands.append(sign("+") if k else "")
            one = drawn(pairs[o, k], f"p{low(o, k)}", scale=scale, cell=small, note=" ")
            summands.append(one)
        if maps == 1:
            summands = []  # the sum is its one summand
        lines.append(
            figure(
                *summands,
                sign("=") if summands else "",
                drawn(p[o], f"p{low(o)}", scale=scale, cell=large),
                sign("g →"),
                drawn(a[o], f"a{low(o)}", scale=scale_of(a), cell=large),
            )
        )
    words = (
        "<p>An output map hears every input map: its pairs are added, entry by entry, and so are "
        "their biases. Then the activation acts on each entry by itself. Here it is "
        f"<b>{escape(g.name.replace('_', ' '))}</b>.</p>"
    )
    return section(
        "L2",
        "Add over the input maps, then activate",
        beside(
            words,
            equation(row(P_O, "="), row(total("k"), sub("p", "ok"))),
            equation(row(A_O, "=g(", P_O, ")"), word(" with "), row("g(p)=", g.g_text)),
        ),
        *lines,
    )


def the_loss(layer: Layer, values: Values) -> str:
    """What is wrong with the output: dL/da."""
    a, target, a_grad = values.a[0], layer.target[0], values.a_grad[0]
    cell = cell_for(3 * a.shape[-1], 2)
    scale = scale_of(a, target)
    lines = [
        figure(
            drawn(a[o], f"a{low(o)}", scale=scale, cell=cell),
            sign("−"),
            drawn(target[o], f"t{low(o)}", scale=scale, cell=cell, note="target"),
            sign("="),
            drawn(a_grad[o], f"∂L/∂a{low(o)}", scale=scale_of(a_grad), cell=cell),
        )
        for o in range(len(a))
    ]
    amount = number(loss(values.a, layer.target).item(), 3)
    words = (
        "<p>To go back, something has to be wrong. The target is what this layer would put out "
        "with slightly other filters, and the loss is half the squared distance to it: "
        f"<b>L = {amount}</b>. In a deeper network ∂L/∂a would come from the layer above, "
        "by that layer's own L6.</p>"
    )
    return section(
        "Loss",
        "How far from the target",
        beside(
            words,
            equation(
                row("L=", fraction("1", "2"), total("o,m,n")),
                row("(", A_O, "[m,n]-", sub("t", "o"), "[m,n])", "²"),
            ),
            equation(row(partial(A_O), "="), row(A_O, "-", sub("t", "o"))),
        ),
        *lines,
    )


def l3(layer: Layer, values: Values) -> str:
    """The error signal: g'(p) times dL/da."""
    g = layer.activation
    slopes = g.g_prime(values.p)[0]
    a_grad, delta = values.a_grad[0], values.delta[0]
    cell = cell_for(3 * delta.shape[-1], 2)
    lines = [
        figure(
            drawn(slopes[o], f"g′(p{low(o)})", scale=scale_of(slopes), cell=cell),
            sign("⊙"),
            drawn(a_grad[o], f"∂L/∂a{low(o)}", scale=scale_of(a_grad), cell=cell),
            sign("="),
            drawn(delta[o], f"δ{low(o)}", scale=scale_of(a_grad, delta), cell=cell),
        )
        for o in range(len(delta))
    ]

    def tabulate(function):  # type: ignore[no-untyped-def]
        return lambda places: function(torch.tensor(places, dtype=torch.float64)).tolist()

    plot = curve([("g", "g", tabulate(g.g)), ("slope", "g′", tabulate(g.g_prime))])
    words = (
        "<p>The error signal δ is the gradient by the pre-activation. An entry of p reaches the "
        "loss through its own activation alone, so the way back is a product, entry by entry. "
        "Where g is flat, nothing passes.</p>"
        f'{plot}<p class="key"><span class="g">g</span><span class="slope">g′</span></p>'
    )
    return section(
        "L3",
        "The error signal: through the activation",
        beside(
            words,
            equation(row(DELTA, "=", partial(P_O)), row("=", G_PRIME, "⊙", partial(A_O))),
            equation(row(prime("g"), "(p)="), g.g_prime_text),
        ),
        *lines,
    )


def l4(layer: Layer, values: Values) -> str:
    """The weight gradient: the valid convolution of the input with delta."""
    outputs, maps = layer.w.shape[:2]
    o = strongest(values)
    rows, columns = values.delta.shape[-2:]
    slide = Slide(
        (f"a{low(0)}", f"δ{low(o)}", f"∂L/∂w̃{low(o, 0)}"),
        layer.a[0, 0],
        values.delta[0, o],
        values.flipped_grad[o, 0],
    )
    scale = scale_of(values.w_grad)
    cell = cell_for(3 * layer.w.shape[-1] * 2, 4)
    turned = figure(
        drawn(values.flipped_grad[o, 0], f"∂L/∂w̃{low(o, 0)}", scale=scale, cell=cell),
        sign("↻ 180°"),
        drawn(values.w_grad[o, 0], f"∂L/∂w{low(o, 0)}", scale=scale, cell=cell),
    )
    every = [
        figure(
            *(
                drawn(values.w_grad[o, k], f"∂L/∂w{low(o, k)}", scale=scale, cell=cell, note=" ")
                for k in range(maps)
            )
        )
        for o in range(outputs)
    ]
    words = (
        f"<p>A tap [r, s] of the filter meets the map at all {rows} × {columns} positions, and "
        "each time what it met is multiplied by the error there. That is a <em>valid</em> "
        "convolution again: now δ is the filter that is laid on the map, and it fits in as many "
        "places as the filter has taps. The gradient by the filter as the lecture writes it is "
        "turned back.</p>"
    )
    return section(
        "L4",
        "The gradient of the filters: a valid convolution with δ",
        beside(
            words,
            equation(
                row(partial(FLIPPED), "[r,s]="),
                row(total("m,n"), DELTA, "[m,n]"),
                row(A_K, "[m+r,n+s]"),
            ),
            turned,
        ),
        slide.draw(),
        "<p>The gradient of every filter:</p>",
        f'<div class="banks">{"".join(every)}</div>',
    )


def strongest(values: Values) -> int:
    """The output map with the largest error: it has most to show."""
    return int(values.delta[0].abs().sum((1, 2)).argmax())


def l5(layer: Layer, values: Values) -> str:
    """The bias gradient: minus the sum of delta."""
    delta, grad = values.delta[0], values.b_grad
    maps = grad.shape[1]
    scale = scale_of(delta)
    lines = []
    for o in range(len(delta)):
        of = " = ".join(f"∂L/∂b{low(o, k)}" for k in range(maps))
        added = number(delta[o].sum().item(), 3)
        result = number(grad[o, 0].item(), 3)
        lines.append(
            figure(
                drawn(delta[o], f"δ{low(o)}", scale=scale, cell=0.62, note=f"adds up to {added}"),
                sign("−Σ →"),
                f'<p class="result">{of} = <b>{result}</b></p>',
            )
        )
    words = (
        "<p>A bias is subtracted at every position, so its gradient is minus the sum of the whole "
        "error signal: the same for all the biases of an output map. torch has one bias for each "
        "output map and adds it: bias<sub>o</sub> = −Σ<sub>k</sub> b<sub>ok</sub>, with the "
        "gradient +Σ δ<sub>o</sub>.</p>"
    )
    return section(
        "L5",
        "The gradient of the biases: a sum",
        beside(
            words,
            equation(row(partial(B_OK), "="), row("-", total("m,n"), DELTA, "[m,n]")),
        ),
        f'<div class="banks">{"".join(lines)}</div>',
    )


def l6(layer: Layer, values: Values) -> str:
    """The recursion: the full convolution of delta with the flipped filters."""
    outputs, maps, *taps = layer.w.shape
    rows, columns = values.delta.shape[-2:]
    up, left = taps[0] - 1, taps[1] - 1
    shares = [one_filters_share(layer, values.delta, o) for o in range(outputs)]
    o = strongest(values)
    padded = torch.nn.functional.pad(values.delta[0, o], (left, left, up, up))
    slide = Slide(
        (f"δ{low(o)}, padded", f"w{low(o, 0)}", f"∂L/∂a{low(0)}"),
        padded,
        layer.w[o, 0],
        shares[o][0],
        inside=Box(up, left, rows, columns),
        note=f"the share of δ{low(o)}" if outputs > 1 else "",
    )
    words = (
        "<p>An input entry [i, j] took part in several outputs, and the errors of all of them "
        "come back to it, each through the tap that led there. That is a <em>full</em> "
        f"convolution: δ gets {up} rows and {left} columns of zeros on every side, so that the "
        "filter reaches the rim too. The filter is w̃, and convolving turns it once more: what "
        "slides over the padded δ is w itself.</p>"
    )
    grads = values.input_grad[0]
    width = grads.shape[-1]
    terms = outputs if outputs > 1 else 0
    cell = cell_for(width * (terms + 1), terms, 1.6 if terms < 3 else 1.2)
    scale = scale_of(grads, *shares)
    lines = []
    for k in range(maps):
        summands: list[str] = []
        for o in range(terms):
            summands.append(sign("+") if o else "")
            label = f"from δ{low(o)}"
            note = f"through w{low(o, k)}"
            summands.append(drawn(shares[o][k], label, scale=scale, cell=cell, note=note))
        result = drawn(grads[k], f"∂L/∂a{low(k)}", scale=scale, cell=cell)
        lines.append(figure(*summands, sign("=") if summands else "", result))
    return section(
        "L6",
        "The recursion: a full convolution of δ",
        beside(
            words,
            equation(
                row(partial(A_K), "[i,j]="),
                row(total("o"), total("m+r=i", "n+s=j"), DELTA, "[m,n]"),
                row(FLIPPED, "[r,s]"),
            ),
        ),
        slide.draw(),
        "<p>Every output map sends its share back; their sum is the gradient by the input map, "
        "and of its size. For the layer below it is the ∂L/∂a its own L3 begins with: a network "
        "is trained by chaining L3, L4 and L6.</p>",
        *lines,
    )


def erratum(layer: Layer, values: Values) -> str:
    """Why g' may not be pulled out of the convolution, as the summary slides do."""
    slopes, full, filters = values.p.shape[-2:], layer.a.shape[-2:], layer.w.shape[-2:]
    sizes = [f"{height} × {width}" for height, width in (slopes, full, filters)]
    above = partial(A_O)
    wrong = row(total("o"), G_PRIME, "⊙(", above, "∗", FLIPPED, ")")
    right = row(total("o"), "(", G_PRIME, "⊙", above, ")∗", FLIPPED)
    try:
        layer.activation.g_prime(values.p[0, 0]) * values.input_grad[0, 0]
        said = ""
    except RuntimeError as error:
        said = f"<p>torch says so too: <code>{escape(str(error))}</code></p>"
    return (
        '<section id="erratum" class="note"><h2>An erratum: multiply first, convolve after</h2>'
        "<p>The two summary slides pull g′ out of the convolution. Taken literally, the shapes do "
        "not fit, neither for L6 nor for L4:</p>"
        f'<div class="two"><div class="wrong"><h3>✗ as summed up</h3>{equation(wrong)}'
        f"<p>{inline(G_PRIME)} is {sizes[0]}, the full convolution {sizes[1]} and the weight "
        f"gradient {sizes[2]}: there is no product entry by entry.</p></div>"
        f'<div class="right"><h3>✓ as derived</h3>{equation(right)}'
        f"<p>Both factors are {sizes[0]}; their product is δ, and the full convolution of it "
        f"{sizes[1]}, the size of the input map.</p></div></div>{said}"
        f"<p>And in the derivation of L6 one factor is printed {inline(derivative(A_O))}; it is "
        f"{inline(derivative(A_K))}.</p></section>"
    )


def derivative(by: str) -> str:
    """∂p_ok/∂by."""
    return fraction(row("∂", sub("p", "ok")), row("∂", by))


def check(steps: Sequence[Step]) -> str:
    """Every quantity three times, and how far they lie apart."""
    lines = []
    for step in steps:
        size = " × ".join(map(str, step.loops.shape))
        cells = "".join(f"<td>{difference(d)}</td>" for d in (*step.differences, step.allowed))
        mark = "<td class=good>✓ agrees</td>" if step.agrees else "<td class=bad>✗ differs</td>"
        lines.append(
            f'<tr><td class="of">{escape(step.equation)}</td><th scope="row">'
            f"{subscripted(step.symbol)}</th><td>{size}</td><td>{step.terms}</td>{cells}{mark}</tr>"
        )
    good = all(step.agrees for step in steps)
    verdict = (
        "All three agree in every entry of every step."
        if good
        else "The three do not agree: see the lines marked ✗."
    )
    return (
        '<section id="check"><h2>The check: three ways, one result</h2>'
        "<p>Everything above is the lecture's sums, written as loops. The same layer went through "
        "<b>torch_convbp</b>'s operators and through <b>torch</b>'s own convolution and "
        "activation, each with one backward pass of autograd. The table has the largest difference "
        "in any entry, and what rounding allows: 2 (D + c) u A, where D is the number of terms in "
        "a sum, c = 16 from L3 on for g, g′ and the loss, u = 2<sup>−53</sup>, and A the largest "
        "sum of the terms' absolute values. (What goes in are multiples of 1/64, so that p is "
        "exact. With an activation made of straight lines the rest is often exact as well.)</p>"
        f'<p class="verdict {"good" if good else "bad"}">{verdict}</p>'
        '<div class="wide" tabindex="0"><table><thead><tr><th></th><th scope="col"></th>'
        '<th scope="col">shape</th><th scope="col">D</th>'
        '<th scope="col">torch_convbp<br>− loops</th><th scope="col">torch<br>− loops</th>'
        '<th scope="col">torch_convbp<br>− torch</th><th scope="col">allowed</th><th></th></tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def difference(value: float) -> str:
    """A difference in a table."""
    return f"{value:.1e}".replace("-", "−") if value else "0"


def subscripted(symbol: str) -> str:
    """A symbol such as ∂L/∂w_ok, with its index below."""
    letter, _, index = symbol.partition("_")
    return f"{escape(letter)}<sub>{escape(index)}</sub>"
