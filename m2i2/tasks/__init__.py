"""What is trained: student, teacher, queue; a batch in, losses and features out."""
