"""What the bytes of a cache say; docs/cache-format.md specifies it.

manifest        what a cache was made from
layout          the shape of a view's records
descriptions    the `zarr.json` of each array
arrays          shards, from values to bytes and back
encodings       what a chunk of a shard holds
bounded_codecs  chunks that lie about themselves, refused before anything is allocated
"""
