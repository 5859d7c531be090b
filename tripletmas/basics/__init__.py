"""What knows nothing of the subject: weights by name, files, sentences, the version."""
