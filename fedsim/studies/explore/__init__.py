"""A page to explore many runs: one HTML file that needs no network. `page` makes it, the .js files are what it does."""

from fedsim.studies.explore.page import Tables, write_page

__all__ = ["Tables", "write_page"]
