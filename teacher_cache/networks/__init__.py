"""Networks of timm and torchvision, whoever learns or teaches with them.

libraries         a network by its name
checkpoints       state dicts out of files
weights           state dicts fitted to a network
reparam           `expand` and `fold`: re-parameterization by surgery
branches          a convolution's parallel branches
branch_init       what new branches begin with
conv_norm_pairs   the convolutions of a network that a BatchNorm follows
device_memory     memory that a network lacks, in words
"""
