"""The networks: image encoder, text stacks, and the two models built of them."""
