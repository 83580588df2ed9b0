"""DeepSpeed: its configuration, the engine, and every use of its private names."""
