"""The format of a cache's files, which docs/cache-format.md specifies.

manifest         the manifest: what a cache was made from
layout           the shape of a view's records
descriptions     the `zarr.json` of each array
arrays           shards, from values to bytes and back
encodings        how records are encoded in a chunk, and decoded
bounded_codecs   decoders that refuse a chunk of another size before they allocate anything
"""
