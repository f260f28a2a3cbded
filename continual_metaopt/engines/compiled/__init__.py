"""Steps executed by compiled code."""
