"""The paper's experiments beside one's own."""
