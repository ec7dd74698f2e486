"""The page of a study: one HTML file that works offline; its template, style and script lie beside this file."""

from tokcomp.report.page.build import write_page

__all__ = ["write_page"]
