"""Data sets of images: which there are, in which order, of which classes, and their bytes.

index          `ImageIndex`: the rows of a data set, their labels, their bytes
source         what every kind of data set gives: a listing, and images by row
folder         a folder of class folders
tars           a tar of class folders, or of tars
tar_headers    where in a tar its files lie
archive        images inside archives
webdataset     `wds/...`: shards of samples
hugging_face   `hfds/...`: a data set of the datasets library
names          millions of names in one block of memory
"""
