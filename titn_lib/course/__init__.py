"""What the notebooks share: the set-up cell, example images, sliders, and the checks of their exercises.

Each notebook's exercises have a module of the same number and name: ex02_inner_attention.py.
"""

from titn_lib.course.setup import example_images, sliders

__all__ = ["example_images", "sliders"]
