"""What the experiments share: data, networks, pages and pictures, the folder of a run."""
