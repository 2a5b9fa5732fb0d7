"""geom beside its peers: same input, same pre-processing, same settings, one run. `python -m benchmarks` lists them."""
