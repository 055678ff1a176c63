"""A run's folder.

run           `Run`: what it was started with
run_weights   its sets of weights, as networks
checkpoint    its saved states
metrics       its `metrics.jsonl`
"""
