"""The HTML report of a run: one file that needs nothing else, offline."""

from typing import Final

REPORT_FILE: Final = "report.html"
EXAMPLES_FILE: Final = "examples.json"
SETTINGS_FILE: Final = "settings.json"
