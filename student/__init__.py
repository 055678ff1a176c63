"""The student: the paper's recipe on cached targets, from batches to an exported network."""
