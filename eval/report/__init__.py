"""The HTML pages: read from the files of a run, drawn without computing anything anew."""
