"""Which rows a step shows, with which records.

training_data   the images and the cache of a run
plan            how many steps there are, and which share a rank shows
shuffle         the order of an epoch
slabs           the records of each epoch's view, ahead of need
batches         pixels, labels and targets, step by step
prefetch        batches on their way to the device
"""
