"""Error signals of a backward pass: recorded layer by layer, told by their statistics, and logged
and drawn by a Lightning callback."""
