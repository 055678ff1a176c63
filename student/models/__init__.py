"""Students: built, expanded for training, folded for use, counted.

build             a student by its name
reparam           `expand` and `fold`: re-parameterization by surgery
branches          a convolution's parallel branches
branch_init       what new branches begin with
conv_norm_pairs   the convolutions of a network that a BatchNorm follows
size              parameters and multiply-adds
latency           milliseconds an image
published         published figures, with their sources
survey            `cli.py models`
"""
