"""What the notebooks share: the set-up cell, example images, sliders, tables, and the checks of their exercises.

Each notebook's exercises have a module of the same number and name: ex02_inner_attention.py.
"""

from titn_lib.course.setup import example_images, sliders
from titn_lib.io import markdown_table

__all__ = ["example_images", "markdown_table", "sliders"]
