"""One small layer through L1 to L6, step by step, as a page to put on the screen.

``python -m torch_convbp.explain`` computes every step three times (with the lecture's loops, with
this package's operators, with torch's own), compares them, and writes one HTML page that holds its
pictures within itself.

picture     the picture that goes in: a built-in one, or the user's own
activation  g and its derivative
layer       picture, filters, biases and target put together
steps       the computation and the comparison
drawing     maps of numbers as pictures
mathml      equations
sections    the page's parts, one function each
page        the page around them
"""
