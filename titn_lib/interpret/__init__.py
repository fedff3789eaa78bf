"""Attention maps, relevance, and tests of whether they are faithful."""

from titn_lib.interpret.attribution import *  # noqa: F403
from titn_lib.interpret.faithfulness import *  # noqa: F403
