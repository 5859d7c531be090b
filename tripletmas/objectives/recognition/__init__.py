"""Recognition: a head for each task on the embedding, and nearest class means without a task label."""
