"""What remembers: the teacher, a moving average of the student, and the queue of its past features."""
