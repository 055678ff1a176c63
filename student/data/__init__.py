"""Which rows a step shows, with which records: run_plan -> slabs -> batches -> prefetch.

training_data   the images and the cache of a run
run_plan        how many steps there are, and which rows a rank shows in each
shuffle         the order of an epoch
slabs           the records that an epoch needs, read ahead
batches         pixels, labels and targets, step by step
unreadable      images that do not decode
prefetch        batches on their way to the device
"""
