"""The files of a cache, in a folder or in an object store, and the ledger that names them.

place      `Place`: the operations that a cache needs of its store
location   from a path or URL, as a user types it, to a place
keys       the names of a cache's files
ledger     the entries that say what exists: blocks, images, views, the sample
disk       a place in a folder
staging    a folder's workbench: temporary files, claims, the lock
tree       the files below a folder, reached without following a link
bucket     a place below a URL
objects    an object store's requests, repeated while it fails
lease      claims in an object store, which has no locks
"""
