"""What makes a CPU or a GPU fast; chosen and installed once, at start."""
