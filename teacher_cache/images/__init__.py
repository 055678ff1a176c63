"""Data sets of images: which images they hold, in which order, of which classes, and their bytes.

index          `ImageIndex`: the rows of a data set, their labels, their bytes
source         what all kinds of data sets have in common: a listing, and images by row
folder         a folder of class folders
tars           a tar of class folders, or of one tar for each class
tar_headers    where in a tar its files lie
archive        images inside archives, read by offset
webdataset     `wds/...`: WebDataset shards
hugging_face   `hfds/...`: a data set of the `datasets` library
spelling       names that look the same and are not
names          millions of names in one block of memory
"""
