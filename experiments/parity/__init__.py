"""Does ConvBP2d train a network as nn.Conv2d does? ``python -m experiments.parity`` answers."""
