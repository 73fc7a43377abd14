"""Pages: one HTML file that asks nobody, made of a template. The page of a run and that of a comparison share these."""

from .chart import Chart, Line
from .templates import Grid, fragment, printable, render

__all__ = ["Chart", "Grid", "Line", "fragment", "printable", "render"]
