"""One session of a lab, and the work that it sends to devices."""
