"""One image's seeded augmentation, as numbers only; docs/views.md specifies it.

view        `sample_view`: the crop, the flip, the operations, the erased box of one view
policy      the distribution that views are drawn from, and the same in fixed point
geometry    from a view's fractions to whole pixels of an image
noise       what an erased box is filled with
quantiles   the committed tables in `tables/`
"""
