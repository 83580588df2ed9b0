"""The commands behind launchers/ and tools/."""
