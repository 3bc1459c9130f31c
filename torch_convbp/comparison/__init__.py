"""``compare(model, *inputs)``: what each layer and a whole step take, as torch's and as ours.

``compare`` runs copies of the model, ``layers`` measures each layer by itself, with what a step
gives it, ``running`` has steps, clocks and random states, ``result`` what was found, as a table.
"""
