"""The teacher, asked once: seeded views, their pixels, and a cache of the teacher's answers.

The folders stand on floors; each imports only from the floors below it, and from the files here.

    filling        a cache is created, filled tile by tile, planned
    verification   is what is stored what was committed, what it must be, what the teacher says
    cache          a cache that is open: its blocks, its images, a view's records in memory
    loading        pixels in bulk, by worker processes
    teacher        networks, their weights, and their answers as top-k records
    format         what the bytes of a cache say
    networks       checkpoints of every kind, and re-parameterization, for teacher and student
    images         data sets of images, whatever they are packed in
    pixels         from encoded bytes and a view to pixels
    recipes        what a user writes in TOML
    storage        files in a folder or in an object store, and the ledger's entries
    views          one image's seeded augmentation, as numbers

    record         the teacher's answer for some rows, and the numbers that the format fixes
    errors         what a user can act on
    bounded_json   JSON from strangers
    local_path     from what a user types to a path of this machine
    durable        files that survive a power cut
    machine        the processor's name
    parallel_map   a function over many items, some of it ahead
    progress       what a running job says of itself
    stopwatch      where a job's time goes
"""
