"""Class names in figures, in whatever script."""

from typing import Any

from matplotlib import font_manager

# Fonts of Linux, Windows and macOS, of which those are used that are installed.
FALLBACK_FONTS = (
    "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Emoji", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Segoe UI", "Segoe UI Emoji", "Arial Unicode MS",
    "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Geeza Pro", "FreeSans",
)  # fmt: skip


def any_script() -> Any:
    """Settings of matplotlib that show names as they are: "$" and "_" are no formulas, and characters that the font
    lacks come from the installed ones of `FALLBACK_FONTS`."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["sans-serif", *(name for name in FALLBACK_FONTS if name in installed)]
    return {"font.family": families, "text.parse_math": False}
