"""The contract between teacher and student: images, seeded views, pixels, top-k, the Zarr cache."""
