"""The model in a browser: a radiograph, a question, the likeliest answers, and where in the image they come from."""
