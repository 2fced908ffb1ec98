"""The HTML report of a run: one file that needs nothing else, offline."""

from typing import Final

REPORT_FILE: Final = "report.html"
REPORT_STAGE: Final = "report"
"""Stage folder for what only the report needs: the judged examples and the settings that it shows."""
EXAMPLES_FILE: Final = "examples.json"
SETTINGS_FILE: Final = "settings.json"
