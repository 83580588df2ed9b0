"""Running the model: processes, DeepSpeed engine, schedule, loop, checkpoints, logs."""
