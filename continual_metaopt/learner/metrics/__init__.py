"""What is measured while a learner learns."""
