"""The documentation site: pages that are made from the code, and how Markdown becomes pages (`make docs`)."""
