"""Finding a machine that computes wrongly again and again: micro-batches computed again elsewhere, and compared bit by bit."""
