"""Error signals of a backward pass: recorded layer by layer, summarised by statistics, and
logged and drawn by a Lightning callback."""
