"""What a user writes in TOML, and the recipes that ship.

document          any recipe: read, overridden, checked, refused in words
cache_recipe      what decides a cache, and its digest
model_arguments   which arguments of a network a recipe may give
"""
