"""The bundle on the disk: its schema, its files, its tensors, and the merging of a condition into weights."""
